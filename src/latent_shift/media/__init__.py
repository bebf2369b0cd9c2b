"""Video files to uint8 frames `(frames, height, width, 3)` and back. PyAV is imported only when a movie file is."""

from .clip import VideoInfo, VideoReader, open_video, probe_video, read_clip
from .output import check_output_path
from .read import read_metadata, read_video
from .resize import resize_frames
from .sampling import even_frame_indices, even_times, loop_frame_indices
from .sheet import contact_sheet
from .video import Frames, Video, to_uint8
from .write import write_video

__all__ = [
    "Frames",
    "Video",
    "VideoInfo",
    "VideoReader",
    "check_output_path",
    "contact_sheet",
    "even_frame_indices",
    "even_times",
    "loop_frame_indices",
    "open_video",
    "probe_video",
    "read_clip",
    "read_metadata",
    "read_video",
    "resize_frames",
    "to_uint8",
    "write_video",
]
