"""torchvision's and timm's models, by their own names, each with its input size."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo_models import Architecture, Inputs, first_parameter, torchvision_beside_cpu_torch


def _image(*shape: int) -> Callable[[torch.nn.Module, int], Inputs]:
    def inputs(module: torch.nn.Module, batch: int) -> Inputs:
        return {first_parameter(module): torch.randn(batch, *shape)}

    return inputs


def _torchvision(name: str) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        torchvision_beside_cpu_torch.install()
        import torchvision

        options = {"weights_backbone": None} if "/" not in name and name in _BACKBONED else {}
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": False}
        module: torch.nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return module

    return build


def _timm(name: str) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        torchvision_beside_cpu_torch.install()
        import timm

        module: torch.nn.Module = timm.create_model(name, pretrained=False)
        return module

    return build


class _Pick(torch.nn.Module):
    """A segmentation network whose dictionary of outputs is reduced to ``out``."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)["out"]


class _Flow(torch.nn.Module):
    """RAFT's last estimate of the optical flow between two frames."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.net(first, second, num_flow_updates=3)[-1]


class _Detector(torch.nn.Module):
    """A torchvision detector on one image: boxes, scores, labels."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = self.net([image])[0]
        return found["boxes"], found["scores"], found["labels"]


_BACKBONED = {
    "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large",
    "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn",
}  # fmt: skip
_TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
    mnasnet1_0 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18
    resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t swin_v2_t vgg11_bn vit_b_16
"""
_TIMM = """
    bat_resnext26ts beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_tiny
    coatnet_nano_rw_224 convit_tiny convmixer_768_32 convnextv2_atto crossvit_9_240 cspdarknet53
    davit_tiny deit_tiny_patch16_224 dla34 dpn48b eca_nfnet_l0 edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 efficientnet_lite0 efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw
    eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcresnext26ts gcvit_xxtiny
    ghostnet_100 ghostnetv3_100 gmlp_s16_224 halonet26t hardcorenas_a hgnetv2_b0 hiera_tiny_224
    hrnet_w18_small inception_next_atto lambda_resnet26t lcnet_050 legacy_seresnet18 levit_128s
    mambaout_femto mixer_s32_224 mobilenetv1_100 mobilenetv4_conv_small mobileone_s0 mobilevit_xs
    mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small pit_ti_224 poolformerv2_s12 pvt_v2_b0 rdnet_tiny
    repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d resnetv2_50
    rexnet_100 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_xs
    swinv2_cr_tiny_ns_224 tf_mixnet_s tiny_vit_5m_224 tinynet_e tnt_s_patch16_224 twins_pcpvt_small
    twins_svt_small visformer_tiny vit_relpos_small_patch16_224 vit_tiny_patch16_224
    vit_tiny_r_s16_p8_224 volo_d1_224 xception41 xcit_nano_12_p16_224
"""
_SIZES = {
    "inception_v3": 299, "swin_v2_t": 256, "bat_resnext26ts": 256, "botnet26t_256": 256, "crossvit_9_240": 240,
    "gcresnext26ts": 256, "halonet26t": 256, "lambda_resnet26t": 256, "mobilevit_xs": 256,
    "mobilevitv2_050": 256, "sequencer2d_s": 224, "xception41": 299, "tinynet_e": 106,
}  # fmt: skip


def _sized(origin: str, name: str, make: Callable[[str], Callable[[], torch.nn.Module]]) -> Architecture:
    size = _SIZES.get(name, 224)
    return Architecture(name=f"{origin}/{name}", build=make(name), inputs=_image(3, size, size))


def _wrapped(
    name: str, wrapper: type[torch.nn.Module], *shape: int, settle_batch: int = 2, calm: str = ""
) -> Architecture:
    return Architecture(
        name=f"torchvision/{name}",
        build=lambda: wrapper(_torchvision(name)()),  # type: ignore[call-arg]
        inputs=_image(*shape),
        settle_batch=settle_batch,
        calm=calm,
    )


def _one_image(_: torch.nn.Module, __: int) -> Inputs:
    return {"image": torch.rand(3, 320, 320)}


def _two_frames(_: torch.nn.Module, batch: int) -> Inputs:
    return {"first": torch.randn(batch, 3, 128, 128), "second": torch.randn(batch, 3, 128, 128)}


def _video(name: str) -> Architecture:
    return Architecture(name=f"torchvision/{name}", build=_torchvision(name), inputs=_image(3, 8, 112, 112))


def _detector(name: str) -> Architecture:
    return Architecture(
        name=f"torchvision/{name}",
        build=lambda: _Detector(_torchvision(name)()),
        inputs=_one_image,
        settle_batch=1,
    )


ARCHITECTURES = (
    *(_sized("torchvision", name, _torchvision) for name in _TORCHVISION.split()),
    *(
        _wrapped(name, _Pick, 3, 256, 256)
        for name in ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
    ),
    _wrapped("fcn_resnet50", _Pick, 3, 256, 256, calm="*.bn3"),
    _video("r3d_18"),
    _video("mc3_18"),
    Architecture(
        name="torchvision/raft_small",
        build=lambda: _Flow(_torchvision("raft_small")()),
        inputs=_two_frames,
        settle_batch=2,
    ),
    _detector("ssdlite320_mobilenet_v3_large"),
    _detector("retinanet_resnet50_fpn"),
    *(_sized("timm", name, _timm) for name in _TIMM.split()),
)
