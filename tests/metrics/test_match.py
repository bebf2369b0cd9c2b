import numpy as np

from latent_shift.metrics import LabelledFeatures

EYE = np.eye(4, dtype=np.float32)


def reference() -> LabelledFeatures:
    rows = np.stack([EYE[0], EYE[1], (EYE[1] + EYE[2]) / np.float32(2**0.5), EYE[3]])
    return LabelledFeatures(rows, ["heart", "hand", "hand", "rocket"], [None, "light", "dark", None])


def test_labels_come_once_with_their_nearest_clip() -> None:
    query = np.array([0.5, 0.1, 0.8, 0.0], np.float32)
    assert reference().ranked_labels(query) == ["hand", "heart", "rocket"]
    assert reference().ranked_labels(EYE[3])[0] == "rocket"


def test_the_tone_is_that_of_the_labels_nearest_clip() -> None:
    assert reference().nearest_tone(EYE[1], "hand") == "light"
    assert reference().nearest_tone(EYE[2], "hand") == "dark"
    # Other labels' clips do not matter, however near.
    assert reference().nearest_tone(EYE[0], "rocket") is None
