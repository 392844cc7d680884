"""What every network here shares: a stem, residual blocks in stages, pooled features, dropout, a linear classifier.

A family's file has its blocks, its stem and its head; this one has the walk through them. Legend: h the trunk
(N, C, H, W), features (N, C), logits (N, classes).
"""

from torch import Tensor, nn

from workbench.models.arguments import check_arguments
from workbench.models.layers import classifier


class Network(nn.Module):
    """A family sets `blocks` (each with its `stage`), calls `set_head`, and has `forward_stem`, `forward_features`."""

    norm = "none"
    classifier_std = 0.01  # of the classifier's initial weight; 0: zeros

    def set_head(self, num_features: int, num_classes: int, dropout: float) -> None:
        """Dropout and the classifier, the last things a constructor makes."""
        self.num_features = num_features
        self.dropout = nn.Dropout(dropout)
        self.linear, self.num_classes = None, 0
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """A new, freshly drawn classifier for another number of classes; 0 leaves the pooled features as output."""
        check_arguments({"num_classes": num_classes})
        near = next(self.parameters(), None)
        linear = classifier(self.num_features, num_classes, self.classifier_std) if num_classes else nn.Identity()
        self.linear = linear if near is None else linear.to(device=near.device, dtype=near.dtype)
        self.num_classes = num_classes

    def forward_stem(self, x: Tensor) -> Tensor:
        """What the first block gets: images (N, in_channels, H, W) -> (N, C, H', W')."""
        raise NotImplementedError

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The trunk after each stage, (N, C, H, W) each; strides 4, 8, 16, 32 in the paper's ResNets and NFNets."""
        h = self.forward_stem(x)
        maps = []
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i + 1 == len(self.blocks) or self.blocks[i + 1].stage != block.stage:
                maps.append(h)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """The pooled features (N, C), before dropout and classifier."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.forward_features(x)))
