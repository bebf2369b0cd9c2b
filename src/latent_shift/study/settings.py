"""What a study asks for, fixed when it is created."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from latent_shift.core.config import Config

QUESTIONS = ("quality", "faithfulness")
"""The two questions of the paper's Table 3, as they are called in the database and in reports."""

_CONSENT = (
    "You will see pairs of short clips that computers made from a sentence, and say which one you like better.\n\n"
    "We keep your answers, the time they took, and the identifier that your platform gave us, if it gave one. Nothing "
    "else about you is kept. Taking part is voluntary; you may stop at any moment by closing the page."
)


def _check_link(link: str) -> str:
    if urlsplit(link).scheme not in ("http", "https") or "{code}" not in link:
        raise ValueError("must be an address (https://...) with {code} where the code belongs")
    return link


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)]
Link = Annotated[Text, AfterValidator(_check_link)]


class StudySettings(Config):
    """What a study asks for."""

    title: Text = "Which clip is better?"
    """Shown to raters; must not name a system."""
    consent: Text = _CONSENT
    """What raters agree to before they begin. Plain text; an empty line starts a paragraph."""
    quality: Text = "Which clip looks better?"
    """The question of video quality."""
    faithfulness: Text = "Which clip shows better what the sentence says?"
    """The question of text faithfulness."""
    raters_per_pair: int = Field(default=5, ge=1, le=1000)
    """Different raters of each pair; the paper has 5."""
    pairs_per_rater: int = Field(default=20, ge=1, le=10_000)
    """Pairs that one rater is asked about at most, besides the attention checks; no clip is shown twice."""
    checks_per_rater: int = Field(default=2, ge=0, le=100)
    """Attention checks that one rater meets, at random places among the pairs; no more than there are pairs."""
    min_attention: float = Field(default=0.0, ge=0, le=1)
    """Who finishes or leaves, and passed a smaller share of the checks met, does not count; others get the pairs."""
    allow_ties: bool = False
    """Whether raters may answer that they see no difference."""
    lease_minutes: float = Field(default=10, gt=0, le=1440)
    """A pair that was shown and not answered is given to somebody else after so long."""
    completion_code: Text | None = None
    """What raters get at the end; None makes a code of its own for each rater."""
    full_code: Text | None = None
    """What raters get for whom nothing is left to rate; None gives them no code."""
    completion_url: Link | None = None
    """Where raters hand in their code: a link with {code} in it; None shows the code alone."""

    def completion_link(self, code: str | None) -> str | None:
        """The address that hands in a code, where there are both."""
        if self.completion_url is None or code is None:
            return None
        return self.completion_url.replace("{code}", quote(code, safe=""))
