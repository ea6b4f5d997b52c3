"""What `quant_method: "nnc"` of a config.json stands for in transformers: a config and a quantizer.

The quantizer changes nothing in the model: reading the files decodes them (dispatch.py), and what is loaded is an ordinary dense
model, `is_quantized` False, that may be cast, moved and trained.  The quantizer remembers which files the weights came from, so that
`save_pretrained` can write these again.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import InvalidArgument, Unsupported
from ..pretrained_config import METHOD, VERSION
from .dispatch import is_ours
from .original import Original, remember
from .watch import end_watching, watch_reading


class NncConfig(QuantizationConfigMixin):
    """The `quantization_config` of a compressed folder.  version: of the format."""

    def __init__(self, version: str = VERSION, quant_method: str = METHOD, **others: Any) -> None:
        if str(version) != VERSION:
            raise Unsupported(f"config.json: format version {version!r}, this release reads {VERSION}: upgrade nnc")
        if others:
            raise InvalidArgument(f"config.json: quantization_config of nnc has no {min(others)!r}: remove it")
        self.quant_method = quant_method
        self.version = str(version)

    def to_dict(self) -> dict[str, str]:
        return {"quant_method": self.quant_method, "version": self.version}

    to_diff_dict = to_dict


class NncQuantizer(HfQuantizer):
    """Loads and saves compressed folders; dense ones pass."""

    def __init__(self, quantization_config: NncConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        if not self.pre_quantized:
            raise InvalidArgument("NncConfig compresses nothing while loading: compress the folder with nnc compress first")
        # transformers would load some tensors of quantized models in the dtype of the file: these are like those never compressed
        self.pre_quantized = False
        self.originals: tuple[Original, ...] = ()
        self._served: set[str] | None = None
        self._shapes: dict[str, torch.Size] = {}

    def preprocess_model(
        self, model: PreTrainedModel, dtype: Any = None, checkpoint_files: list[str] | None = None, **others: Any
    ) -> None:
        files = [file for file in checkpoint_files or () if is_ours(file)]
        self.originals = tuple(map(remember, files))
        self._served = watch_reading() if files else None
        self._shapes = {name: value.shape for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}

    def postprocess_model(self, model: PreTrainedModel, **others: Any) -> PreTrainedModel:
        served, self._served = self._served, None
        end_watching()
        if served is None:  # dense weights under a config that still says nnc, as a part of a loaded model saves them
            self.remove_quantization_config(model)
        elif not served:
            kinds = ", ".join(getattr(model.config, "architectures", None) or ()) or "another model"
            raise InvalidArgument(
                f"{self.originals[0].path}: no tensor of it belongs to {type(model).__name__}: it is of {kinds}"
            )
        else:
            self._check_shapes(model)
            model.config.quantization_config = self.quantization_config
        return model

    def _check_shapes(self, model: PreTrainedModel) -> None:
        """The first releases of transformers 5 put a tensor of any shape into a model with a quantizer."""
        shapes, self._shapes = self._shapes, {}
        for name, value in model.state_dict().items():
            if name in shapes and value.shape != shapes[name]:
                raise InvalidArgument(
                    f"{self.originals[0].path}: tensor {name!r} has the shape {tuple(value.shape)}, {type(model).__name__} needs "
                    f"{tuple(shapes[name])}: it is of another model"
                )

    def dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The weights are dense already: from now on they are saved so."""
        self.remove_quantization_config(model)
        return model if dtype is None else model.to(dtype)

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel, *others: Any
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """What `save_pretrained` is to write: the files that the weights came from, if they are still what is in there.

        Raises InvalidArgument if not.  A state dict that was given to save_pretrained is not asked for by transformers.
        """
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}  # only the adapter is saved
        return import_module(".saving", __package__).make_ticket(model, self.originals)  # when it is needed: it loads the decoder

    def is_serializable(self, *others: Any, **options: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def register() -> None:
    """Add both to the tables of transformers.  Again: nothing."""
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = NncConfig
    AUTO_QUANTIZER_MAPPING[METHOD] = NncQuantizer
