"""Video files to uint8 frames `(frames, height, width, 3)` and back. PyAV is imported only when a movie file is."""

from .output import check_output_path
from .read import read_video
from .resize import resize_frames
from .sampling import even_frame_indices, loop_frame_indices
from .sheet import contact_sheet
from .video import Frames, Video
from .write import write_video

__all__ = [
    "Frames",
    "Video",
    "check_output_path",
    "contact_sheet",
    "even_frame_indices",
    "loop_frame_indices",
    "read_video",
    "resize_frames",
    "write_video",
]
