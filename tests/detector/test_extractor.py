# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the feature extractor: which timm models serve, their layers, and position embeddings."""

import pytest
import torch

from anomalib_ddpm_st.detector.extractor import FeatureExtractor, default_layers


@pytest.mark.parametrize(
    ("backbone", "layers", "reductions"),
    [
        ("resnet18", ["layer1", "layer2", "layer3"], [4, 8, 16]),
        ("test_resnet", ["layer1", "layer2", "layer3"], [4, 8, 16]),
        ("wide_resnet50_2", ["layer1", "layer2", "layer3"], [4, 8, 16]),
        ("test_efficientnet", ["blocks.1", "blocks.2", "blocks.3"], [4, 8, 16]),
        ("mobilenetv3_small_050", ["blocks.0", "blocks.1", "blocks.3"], [4, 8, 16]),
        ("test_convnext", ["stages.0", "stages.1", "stages.2"], [4, 8, 16]),
        ("test_vit", ["blocks.1", "blocks.2", "blocks.3"], [16, 16, 16]),
        ("vit_tiny_patch16_224", ["blocks.2", "blocks.5", "blocks.8"], [16, 16, 16]),
        ("swin_tiny_patch4_window7_224", ["layers.0", "layers.1", "layers.2"], [4, 8, 16]),
    ],
)
def test_families(backbone: str, layers: list[str], reductions: list[int]) -> None:
    """CNNs and transformers give maps of the promised shapes, of images that are not square."""
    extractor = FeatureExtractor(backbone)
    assert extractor.layers == layers
    assert extractor.reductions == reductions
    assert extractor.one_resolution == (len(set(reductions)) == 1)
    levels = extractor(torch.rand(2, 3, 64, 96))
    for level, width, reduction in zip(levels, extractor.out_dims, reductions, strict=True):
        assert level.shape == (2, width, 64 // reduction, 96 // reduction)
        assert level.std() > 0
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_default_layers_of_a_transformer() -> None:
    """After a quarter, a half and three quarters of its depth, each once."""
    names = [f"blocks.{index}" for index in range(24)]
    assert default_layers(names, [14] * 24) == ["blocks.5", "blocks.11", "blocks.17"]
    assert default_layers(names[:1], [14]) == ["blocks.0"]


def test_default_layers_of_several_resolutions() -> None:
    """The last of each resolution from a quarter on; three at most."""
    names = ["stem", "a", "b", "c", "d", "e"]
    assert default_layers(names, [2, 4, 4, 8, 16, 32]) == ["b", "c", "d"]
    assert default_layers(names[:2], [8, 32]) == ["stem", "a"]


def test_tokens_are_where_their_patches_are() -> None:
    """A change of one patch changes its own token most, in images that are not square."""
    torch.manual_seed(0)
    extractor = FeatureExtractor("test_vit", ["blocks.0"])
    images = torch.zeros(1, 3, 48, 80)
    changed = images.clone()
    changed[..., 16:32, 48:64] = torch.randn(3, 16, 16)
    difference = (extractor(changed)[0] - extractor(images)[0]).norm(dim=1)[0]
    assert difference.argmax() == 1 * 5 + 3


@pytest.mark.parametrize("backbone", ["test_vit", "vit_tiny_patch16_224"])
def test_positions_of_one_size(backbone: str) -> None:
    """Resampled once they give the same features, and are as before afterwards."""
    extractor = FeatureExtractor(backbone)
    assert extractor.has_positions
    state = {name: value.clone() for name, value in extractor.state_dict().items()}
    images = torch.rand(1, 3, 64, 112)
    expected = extractor(images)
    with extractor.fixed_size(64, 112):
        assert extractor.network.pos_embed.shape[1] in {4 * 7, 4 * 7 + 1}
        for level, other in zip(extractor(images), expected, strict=True):
            torch.testing.assert_close(level, other)
    assert all(torch.equal(value, state[name]) for name, value in extractor.state_dict().items())
    for level, other in zip(extractor(images), expected, strict=True):
        assert torch.equal(level, other)


def test_cnn_has_no_positions() -> None:
    """Nothing is to be resampled."""
    extractor = FeatureExtractor("test_resnet")
    assert not extractor.has_positions
    with extractor.fixed_size(64, 64):
        extractor(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(("name", "similar"), [("resnet81", "resnet18"), ("resnet5O", "resnet50")])
def test_unknown_backbone(name: str, similar: str) -> None:
    """The message names it and suggests what was meant."""
    with pytest.raises(ValueError, match=rf"'{name}'.*\b{similar}\b"):
        FeatureExtractor(name)


def test_backbone_like_no_other() -> None:
    """If no name is similar, the message says how to list the names."""
    with pytest.raises(ValueError, match=r"'qqqq'.*list_models"):
        FeatureExtractor("qqqq")


def test_unknown_weights() -> None:
    """The message lists the weights that there are."""
    with pytest.raises(ValueError, match=r"no weights named 'resnet18\.none'.*resnet18\.tv_in1k"):
        FeatureExtractor("resnet18.none")


@pytest.mark.parametrize("backbone", ["maxvit_tiny_tf_224", "mixer_s32_224", "levit_128s"])
def test_backbone_of_one_size(backbone: str) -> None:
    """The message names the backbone, its size and what to choose."""
    with pytest.raises(ValueError, match=rf"'{backbone}' takes images of 224 x 224 pixels alone.*resnet18.*vit_small"):
        FeatureExtractor(backbone)


@pytest.mark.parametrize("layers", [["layer9"], ["layer1", "layer9"], []])
def test_missing_layer(layers: list[str]) -> None:
    """The message names backbone and layer, and lists the layers that there are."""
    with pytest.raises(ValueError, match=r"resnet18.*layer1, layer2, layer3, layer4"):
        FeatureExtractor("resnet18", layers)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_order_of_layers(backbone: str) -> None:
    """From fine to coarse, or from early to late, each once."""
    names = FeatureExtractor(backbone).layers
    for layers in (names[::-1], [names[0], names[0]]):
        with pytest.raises(ValueError, match="must be ordered from fine to coarse"):
            FeatureExtractor(backbone, layers)
