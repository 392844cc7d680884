"""What all networks share: stem, residual blocks in stages, pool, dropout and classifier.

The file of a family defines its stem, blocks and head. This file runs them in order.
Legend: h the trunk (N, C, H, W), features (N, num_features), logits (N, num_classes).
"""

from torch import Tensor, nn

from workbench.models.arguments import check_arguments
from workbench.models.layers import classifier


class Network(nn.Module):
    """Base class of the families.

    A family sets `stem` and `blocks`, calls `set_head` last, and defines `forward_stem` and `forward_features`.

    Attributes:
        norm: "none", "batch" or "group".
        classifier_std: Standard deviation of the classifier's initial weight. 0: zeros.
        stem: One convolution, or a list of them.
        blocks: The residual blocks in order. Each has its `stage`, counted from 0.
        linear: The classifier, or the identity if `num_classes` is 0.
        recipe: The arguments of `create_model`, if that made the network.
        image_preprocess: How test images are made and what the classes are, as the file of the weights says.
    """

    norm = "none"
    classifier_std = 0.01
    stem: nn.Module
    blocks: nn.ModuleList
    linear: nn.Module
    recipe: dict
    image_preprocess: dict | None = None

    def set_head(self, num_features: int, num_classes: int, dropout: float) -> None:
        """Make dropout and the classifier. A constructor calls this last."""
        self.num_features = num_features
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Draw a new classifier. With 0 classes the network returns the pooled features.

        Raises:
            WorkbenchError: If `num_classes` is not a whole number of at least 0.
        """
        check_arguments({"num_classes": num_classes})
        near = next(self.parameters(), None)
        linear = classifier(self.num_features, num_classes, self.classifier_std) if num_classes else nn.Identity()
        self.linear = linear if near is None else linear.to(device=near.device, dtype=near.dtype)
        self.num_classes = num_classes
        if self.image_preprocess is not None:
            self.image_preprocess = {**self.image_preprocess, "classes": [], "trained_on": ""}

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run the stem: (N, in_channels, H, W) -> (N, C, H', W'), the input of the first block."""
        raise NotImplementedError

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Return the trunk (N, C, H', W') after each stage.

        In the paper's ResNets and NFNets the strides are 4, 8, 16 and 32.
        """
        h = self.forward_stem(x)
        maps = []
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i + 1 == len(self.blocks) or self.blocks[i + 1].stage != block.stage:
                maps.append(h)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features (N, num_features), before dropout and classifier."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits: (N, in_channels, H, W) -> (N, num_classes)."""
        return self.linear(self.dropout(self.forward_features(x)))
