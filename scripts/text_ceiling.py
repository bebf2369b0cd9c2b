"""What the frozen text encoder alone knows of the held-out paraphrases: the ceiling of any model that listens to it.

For each paraphrase of `latent-shift evaluate emoji` all labels are sorted by how near their nearest caption is (cosine
of the mean token features). Printed is how often the right label is the first, and among the first five; and the score
of a perfect drawing of the first, the real clip of the nearest label that has one, by the evaluation's own measure.

usage: python scripts/text_ceiling.py [MODEL_FOLDER] [DATA_FOLDER] [OUTPUT_FOLDER]

OUTPUT_FOLDER is that of the evaluation, whose features of the real clips it takes (runs/evaluation).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from latent_shift.data.records import CaptionedVideoFolder
from latent_shift.evaluation.judge import EmojiJudge
from latent_shift.evaluation.subjects import emoji_subjects
from latent_shift.pipelines import LatentShiftPipeline, load_pipeline


@torch.no_grad()
def embed(pipeline: LatentShiftPipeline, captions: list[str]) -> Tensor:
    """Unit vectors `(captions, width)`: mean token features, without the zeros of the padding."""
    rows = []
    for start in range(0, len(captions), 64):
        tokens = pipeline.encode_prompt(captions[start : start + 64])[0].float()
        rows.append(torch.nn.functional.normalize(tokens.sum(dim=1), dim=-1))
    return torch.cat(rows)


def main() -> None:
    """Prints the four shares."""
    model, data, output = (*sys.argv[1:], *("emoji", "data/emoji", "runs/evaluation")[len(sys.argv) - 1 :])
    pipeline, folder = load_pipeline(model, "cpu", "fp32"), CaptionedVideoFolder(data)
    known = [(caption, record.metadata["label"]) for record in folder for caption in record.captions]
    labels = sorted({label for _, label in known})
    subjects = emoji_subjects(folder)["paraphrase"]
    nearness = (
        embed(pipeline, [subject.prompt for subject in subjects]) @ embed(pipeline, [text for text, _ in known]).T
    )
    owners = torch.tensor([labels.index(label) for _, label in known])
    best = torch.full((len(subjects), len(labels)), -1.0)
    best.scatter_reduce_(1, owners.expand(len(subjects), -1), nearness, "amax")
    right = torch.tensor([labels.index(subject.label) for subject in subjects])
    order = best.argsort(dim=1, descending=True)
    for count in (1, 5):
        share = (order[:, :count] == right[:, None]).any(dim=1).float().mean()
        print(f"the right label is among the first {count}: {share:.1%} of {len(subjects)} paraphrases")

    real = EmojiJudge(folder, Path(output), pipeline.device).reference
    clips = {label: row for label, tone, row in zip(real.labels, real.tones, real.features, strict=True) if not tone}
    drawn = [next(labels[index] for index in row if labels[index] in clips) for row in order.tolist()]
    near = [real.ranked_labels(clips[label]) for label in drawn]
    for count in (1, 5):
        hits = sum(subject.label in ranked[:count] for subject, ranked in zip(subjects, near, strict=True))
        print(f"the real clip of the nearest label, top-{count}: {hits / len(subjects):.1%}")


if __name__ == "__main__":
    main()
