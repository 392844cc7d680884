"""What tests share: references, foreign networks, tasks, and the crash harness."""
