"""What is multiplied to the time of one scan; peers themselves need an extra and minutes."""

import peers
import pytest
from torch import nn


@pytest.mark.parametrize(
    ("scan", "largest", "windows"),
    [
        ((155, 240, 240), peers.WHOLE, 1),
        ((155, 240, 240), peers.PATCH, 2 * 3 * 3),  # 128 voxels every 64
        ((32, 64, 64), peers.PATCH, 1),
    ],
)
def test_windows_that_overlap_by_half_cover_the_scan(
    scan: tuple[int, int, int], largest: tuple[int, int, int], windows: int
) -> None:
    assert peers.on_windows(nn.Identity(), scan, largest).times == windows


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match="names must be some of rasalore tiny"):
        peers.main(peers.PeersRecipe(names=["nnunet"]))
