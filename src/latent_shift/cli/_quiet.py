"""Keeps the libraries' own notices and loading bars out of the command line's output."""

import warnings


def quiet_libraries() -> None:
    """Only errors of diffusers and transformers are shown, and no bar while weights load."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
