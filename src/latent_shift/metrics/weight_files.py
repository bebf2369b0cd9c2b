"""Where the networks of published metrics come from. Nothing is fetched: a user does that, and sees what from where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import sha256_file


@dataclass(frozen=True)
class WeightFile:
    """A file that a user has to fetch.

    Attributes:
        file_name: what it is called, there and here.
        address: where it is.
        revision: of it, at its source.
        sha256: what it has to be; None where no trusted source states one. Then the result names the file's own.
    """

    file_name: str
    address: str
    revision: str
    sha256: str | None = None

    def find(self, folder: Path) -> tuple[Path, str]:
        """The file in `folder`, and its SHA-256.

        Raises:
            InputError: it is not there. Says what to fetch and where to put it.
            DataError: it is another file.
        """
        path = folder / self.file_name
        if not path.is_file():
            pinned = f" (sha256 {self.sha256})" if self.sha256 else ""
            raise InputError("weights", str(folder), f"hold {self.file_name}: fetch {self.address}{pinned} to {path}")
        found = sha256_file(path)
        if self.sha256 not in (None, found):
            raise DataError(f"{path} is not the file of {self.address}: its sha256 is {found}, expected {self.sha256}")
        return path, found


_I3D_REVISION = "1c2d61711c52571ad617a1063e6fa691b212e184"
_TGAN2 = "https://github.com/rezoo/tgan2/releases/download/v1.0"

INCEPTION = WeightFile(
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "2015-12-05",
)
I3D = WeightFile(
    "i3d_torchscript.pt",
    f"https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/{_I3D_REVISION}/i3d_torchscript.pt",
    _I3D_REVISION,
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
)
C3D = WeightFile("conv3d_deepnetA_ucf.npz", f"{_TGAN2}/conv3d_deepnetA_ucf.npz", "v1.0")
C3D_MEAN = WeightFile("mean2.npz", f"{_TGAN2}/mean2.npz", "v1.0")
