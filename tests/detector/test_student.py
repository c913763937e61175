# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of student and decoder."""

from itertools import starmap

import torch
from torch.nn import functional

from anomalib_ddpm_st.detector import DdpmStModel
from anomalib_ddpm_st.detector.student import BOTTLENECK_WIDTH, MAX_DECODER_WIDTH, Decoder


def test_decoder() -> None:
    """Levels are returned from fine to coarse in the requested sizes; none is wider inside than the limit."""
    dims = [8, 12, MAX_DECODER_WIDTH + 44]
    decoder = Decoder(20, dims).eval()
    sizes = [torch.Size((17, 21)), torch.Size((9, 11)), torch.Size((5, 6))]
    hidden = torch.rand(2, 20, 3, 3)
    with torch.no_grad():
        restored = decoder(hidden, sizes)
    assert [level.shape for level in restored] == [(2, dim, *size) for dim, size in zip(dims, sizes, strict=True)]
    assert [output.in_channels for output in decoder.outputs] == [8, 12, MAX_DECODER_WIDTH]
    # Coarse to fine: what the coarsest level adds reaches all of them, what the finest adds itself alone.
    for level, reached in ((2, [True, True, True]), (1, [True, True, False]), (0, [True, False, False])):
        hook = decoder.blocks[level].register_forward_hook(lambda *call: call[-1] + 1)
        with torch.no_grad():
            changed = decoder(hidden, sizes)
        hook.remove()
        differs = [not torch.equal(before, after) for before, after in zip(restored, changed, strict=True)]
        assert differs == reached, level


def test_decoder_upsamples_after_reducing() -> None:
    """The order does not matter for the result, only for the cost."""
    decoder = Decoder(6, [4]).eval()
    hidden = torch.rand(1, 6, 3, 4)
    with torch.no_grad():
        enlarged = decoder.reduce[0](functional.interpolate(hidden, size=(6, 9), mode="bilinear"))
        expected = decoder.outputs[0](decoder.blocks[0](decoder.norms[0](enlarged)))
        (restored,) = decoder(hidden, [torch.Size((6, 9))])
    torch.testing.assert_close(restored, expected, atol=1e-5, rtol=0)


def test_student_passes_a_bottleneck(network: DdpmStModel) -> None:
    """Every level reaches the decoder, and by nothing but a bottleneck of half of the coarsest resolution."""
    shapes: list[torch.Size] = []
    hook = network.student.bottleneck.register_forward_hook(lambda *call: shapes.append(call[-1].shape))
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = network.teacher(images)
        restored = network.student(features)
        for level in range(3):
            changed = [value.clone() for value in features]
            changed[level] = changed[level].flip(-1)
            for before, after in zip(restored, network.student(changed), strict=True):
                assert not torch.allclose(before, after, atol=1e-6), level
    hook.remove()
    assert shapes == [(2, BOTTLENECK_WIDTH, 2, 3)] * 4
    hook = network.student.bottleneck.register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
    with torch.no_grad():
        blocked = network.student(features)
        others = network.student([value.flip(-1) * 2 for value in features])
    hook.remove()
    assert all(starmap(torch.equal, zip(blocked, others, strict=True)))
