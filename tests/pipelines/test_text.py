"""Covers `latent_shift.pipelines.text`."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging as transformers_logging

from latent_shift import LatentShiftPipeline
from latent_shift.pipelines.text import encode_text, tokenize

CAPTIONS = ["a red heart", "", "a waving hand ."]


@pytest.fixture
def parts(pipeline: LatentShiftPipeline) -> tuple:
    return pipeline.tokenizer, pipeline.text_encoder


def lengths(parts: tuple) -> list[int]:
    return [len(parts[0](caption)["input_ids"]) for caption in CAPTIONS]


@torch.no_grad()
def test_hidden_padding_changes_nothing_and_is_zero(parts: tuple) -> None:
    features = encode_text(*parts, CAPTIONS, 8, True)
    assert features.shape == (3, 8, 12)
    assert lengths(parts) == [5, 2, 7]
    for row, caption, length in zip(features, CAPTIONS, lengths(parts), strict=True):
        tokenizer, encoder = parts
        alone = encoder(tokenizer(caption, return_tensors="pt").input_ids)[0][0]
        torch.testing.assert_close(row[:length], alone, rtol=0, atol=1e-5)
        assert not row[length:].any()
        assert row[:length].abs().sum(1).min() > 0


@torch.no_grad()
def test_visible_padding_is_attended_to(parts: tuple) -> None:
    features = encode_text(*parts, CAPTIONS, 8, False)
    assert features.shape == (3, 8, 12)
    tokenizer, encoder = parts
    for row, caption, length in zip(features, CAPTIONS, lengths(parts), strict=True):
        ids = tokenizer(caption)["input_ids"]
        padded = torch.tensor([ids + [tokenizer.pad_token_id] * (8 - length)])
        torch.testing.assert_close(row, encoder(padded)[0][0], rtol=0, atol=1e-5)
    hidden = encode_text(*parts, CAPTIONS, 8, True)
    assert not torch.allclose(features[1, :2], hidden[1, :2], atol=1e-4)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_long_captions_are_cut_and_named(parts: tuple, caplog: pytest.LogCaptureFixture, mask_padding: bool) -> None:
    long = "a red heart a blue hand"
    with caplog.at_level(logging.WARNING, logger="latent_shift"):
        features = encode_text(*parts, ["a red", long], 5, mask_padding)
    assert features.shape == (2, 5, 12)
    assert [record.getMessage() for record in caplog.records] == [f"prompt of 8 tokens is cut to 5: {long!r}"]
    torch.testing.assert_close(features[1], encode_text(*parts, ["a red heart"], 5, mask_padding)[0])


def test_the_warning_is_one_short_line(parts: tuple, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = copy.deepcopy(parts[0])  # one that has not warned yet: transformers does once
    with caplog.at_level(logging.WARNING), transformers_heard():
        tokenize(tokenizer, ["a red heart\n" * 40], 5, "longest")
    (message,) = [record.getMessage() for record in caplog.records]
    begin, end = r"a red heart\na red heart\na red heart\n", r"a red heart\na red heart\na red heart\n"
    assert message == f"prompt of 122 tokens is cut to 5: '{begin} ... {end}'"


@contextlib.contextmanager
def transformers_heard() -> Iterator[None]:
    """Its loggers hand their lines to pytest's."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_propagation()
    yield
    transformers_logging.disable_propagation()
    transformers_logging.set_verbosity(verbosity)


def test_no_gradient_and_no_dropout(parts: tuple) -> None:
    features = encode_text(*parts, CAPTIONS, 8, True)
    assert not features.requires_grad
    assert torch.equal(features, encode_text(*parts, CAPTIONS, 8, True))
