"""NNCodec, the reference software of the NNC standard (ISO/IEC 15938-17), as the peer that nnc is measured against.

It runs where the package `nncodec` 2.1 is installed, in this process, on NumPy arrays and one thread.  Only its core is driven,
since its front end pulls in training frameworks.  Settings: dependent quantization, estimation of its context parameters, row
skipping, non-weights at qp -75, no rate-distortion lambda unless asked for.
"""
from __future__ import annotations

import importlib
import importlib.util
import time
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from nnc.errors import InsufficientData

NONWEIGHT_QP = -75
UNARY_LENGTH = 10


@dataclass(frozen=True, eq=False)
class PeerRun:
    """bytes: of the bitstream; encode, decode: CPU seconds; state: what it decodes to."""

    bytes: int
    encode: float
    decode: float
    state: dict[str, torch.Tensor]


def peer_is_installed() -> bool:
    return importlib.util.find_spec("nncodec") is not None and importlib.util.find_spec("nncodec.nnc_core") is not None


def run_peer(state: dict[str, torch.Tensor], qp: int, lambda_scale: float = 0.0) -> PeerRun:
    """Encode and decode a state dict.  Raises InsufficientData if the package is missing."""
    if not peer_is_installed():
        raise InsufficientData("package nncodec is not installed: install it, or leave the peer out")
    arrays = {name: value.to(torch.float32 if value.is_floating_point() else torch.int32).numpy()
              for name, value in state.items()}
    start = time.process_time()
    stream = _encode(arrays, qp, lambda_scale)
    middle = time.process_time()
    decoded = _decode(stream)
    end = time.process_time()
    back = {name: torch.from_numpy(np.asarray(value)) for name, value in decoded.items()}
    return PeerRun(len(stream), middle - start, end - middle, back)


def _core(name: str) -> ModuleType:
    return importlib.import_module(f"nncodec.nnc_core.{name}")


def _encode(arrays: dict[str, np.ndarray], qp: int, lambda_scale: float) -> bytearray:
    approximator, coder = _core("approximator"), _core("coder")
    info = _core("nnr_model").NNRModel(arrays).model_info
    data = approximator.init_approx_data(arrays, info, qp_density=2, scan_order=0)
    chosen = approximator.ApproxInfo(data, info, "uniform", 0, qp, False, False, UNARY_LENGTH, lambda_scale,
                                     nonweight_qp=NONWEIGHT_QP)
    on = ("param_opt_flag", "general_profile_idc", "node_id_present_flag", "row_skip_enabled_flag")
    off = ("partial_data_counter", "device_id", "mps_parent_signalling_enabled_flag", "parent_node_id_present_flag",
           "temporal_context_modeling_flag", "pre_signalling")
    asked = {"cabac_unary_length_minus1": UNARY_LENGTH} | dict.fromkeys(on, 1) | dict.fromkeys(off, 0)
    return coder.encode(asked, info, approximator.approx(chosen.approx_info, info, data, asked))[0]


def _decode(stream: bytearray) -> dict[str, np.ndarray]:
    approximator, coder = _core("approximator"), _core("coder")
    tools = ("sparsification", "pruning", "unification", "decomposition_performance_map")
    info = {"parameter_type": {}, "parameter_dimensions": {}, "parameter_index": {}, "block_identifier": {},
            "topology_storage_format": None, "topology_compression_format": None, "performance_maps": {"mps": {}, "lps": {}},
            "performance_map_flags": {f"{level}_{tool}_flag": {} for level in ("mps", "lps") for tool in tools}}
    data = coder.decode(stream, info)
    approximator.rec(data)
    return data["parameters"]
