"""The contract kit: what every registered part must pass, ours and a plugin's alike.

    from rpiae.testing import check_encoder

    def test_my_encoder() -> None:
        check_encoder(MyEncoderConfig(width=32))

The checks raise AssertionError with what is wrong.
"""

from rpiae.testing.contracts import (
    check_bridge,
    check_critic,
    check_decoder,
    check_encoder,
    check_loss,
)
from rpiae.testing.images import SyntheticImages

__all__ = [
    "SyntheticImages",
    "check_bridge",
    "check_critic",
    "check_decoder",
    "check_encoder",
    "check_loss",
]
