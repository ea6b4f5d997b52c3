"""Compress a trained network to several sizes, look into a file, load it back, and see what each size costs in accuracy.

    python examples/01_compress_and_evaluate.py

The network is in digits_cnn.py: 134,058 float32 parameters, trained on the handwritten digits of scikit-learn.
"""
from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from digits_cnn import WEIGHTS, build, task
from safetensors import safe_open

import nnc
from nnc.evaluation import evaluate


def main() -> None:
    digits = task()  # top-1 accuracy on 599 test images that training never saw
    original = WEIGHTS.stat().st_size
    before = evaluate(WEIGHTS, digits, build)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        # 1. Compress. `bits` asks for an average over all weights; `size` is a bound in bytes for the whole file.
        asked = {f"{bits:g} bits": {"bits": bits} for bits in (6, 4, 3, 2, 1.5, 1)} | {"40 kB": {"size": 40_000}}
        files = {name: folder / f"{name.replace(' ', '_')}.safetensors" for name in asked}
        sizes = {name: nnc.compress(WEIGHTS, files[name], **options).file_bytes for name, options in asked.items()}

        # 2. Look inside. A compressed file is an ordinary .safetensors file: any tool can list it.
        with safe_open(files["3 bits"], framework="pt") as content:
            print(f"{files['3 bits'].name} holds")
            for name in sorted(content.keys()):
                entry = content.get_slice(name)
                print(f"  {name:32} {entry.get_dtype():4} {entry.get_shape()}")

        # 3. Load it back: as a state dict with the names, shapes and dtypes of the original, or straight into a model.
        state = nnc.load(files["3 bits"])
        print(f"conv2.weight comes back as {state['conv2.weight'].dtype} {tuple(state['conv2.weight'].shape)}")
        model = build().eval()
        nnc.load_into(model, files["3 bits"])
        with torch.inference_mode():
            print(f"logits of one blank image: {[round(x, 2) for x in model(torch.zeros(1, 1, 8, 8))[0].tolist()]}")

        # 4. Evaluate each file beside the original. KL is the distance between their predictions, and needs no labels.
        print(f"\n{'asked':>8} {'bytes':>8} {'ratio':>6} {'bits/weight':>11} {digits.metric:>8} {'KL nats':>9} "
              f"{'same top-1':>10}")
        weights = sum(value.numel() for value in state.values())
        print(f"{'original':>8} {original:8,} {1:6.1f} {8 * original / weights:11.2f} {before.value:8.2f} {0:9.1g} {1:10.2%}")
        for name, size in sizes.items():
            report = evaluate(files[name], digits, build, original=WEIGHTS)
            print(f"{name:>8} {size:8,} {original / size:6.1f} {8 * size / weights:11.2f} {report.value:8.2f} "
                  f"{report.fidelity.kl:9.2g} {report.fidelity.top1_agreement:10.2%}")

        # 5. Where the error of the smallest file arises: relative error of the outputs of each layer.
        smallest = min(sizes, key=sizes.get)
        report = evaluate(files[smallest], digits, build, original=WEIGHTS, layers=True)
        print(f"\nlayers at {smallest}: " + ", ".join(f"{layer.name} {layer.relative_error:.2f}" for layer in report.layers))


if __name__ == "__main__":
    main()
