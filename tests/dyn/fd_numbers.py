"""The weights of FDConv's parity vectors, in the layout and with the names of its authors' code."""

import numpy as np
from layer_cases import sines

IN, OUT, SQUEEZED = 18, 20, 16
PREFIX = "layer1.0.conv2."


def make_torch_weights(size=3, *, num_kernels=4, num_spectra=1, local=True, only_groups=False):
    """Returns the weights of one layer from 18 to 20 features, by the authors' names."""
    kernel = sines((OUT, IN, size, size), 0.7)
    matrix = kernel.transpose(0, 2, 1, 3).reshape(OUT * size, IN * size)
    spectrum = np.fft.rfft2(matrix) / (min(IN, OUT) // 2)
    spectrum = np.stack([spectrum.real, spectrum.imag], -1)
    norm = {"weight": 1 + sines((SQUEEZED,), 0.2, 0.1), "bias": sines((SQUEEZED,), 0.3, 0.1)}
    norm |= {"running_mean": sines((SQUEEZED,), 0.4, 0.1)}
    norm |= {"running_var": 1 + sines((SQUEEZED,), 0.5, 0.2)}
    weights = {"dft_weight": np.repeat(spectrum[None], num_spectra, 0)}
    weights |= {"KSM_Global.fc.weight": sines((SQUEEZED, IN, 1, 1), 0.1)}
    weights |= {f"KSM_Global.bn.{name}": value for name, value in norm.items()}
    weights |= {"KSM_Global.relu.scale": np.array([0.9]), "KSM_Global.relu.bias": np.array([0.05])}
    heads = {"channel": (1, IN), "filter": (2, OUT), "spatial": (3, size**2)}
    heads = {name: head for name, head in heads.items() if not only_groups and head[1] > 1}
    for name, (phase, number) in (heads | {"kernel": (4, num_kernels * num_spectra)}).items():
        head = f"KSM_Global.{name}_fc"
        weights[f"{head}.weight"] = sines((number, SQUEEZED, 1, 1), phase)
        weights[f"{head}.bias"] = sines((number,), phase + 1)
    if local:
        weights["KSM_Local.norm.weight"] = 1 + sines((IN,), 0.6, 0.1)
        weights["KSM_Local.norm.bias"] = sines((IN,), 0.8, 0.1)
        weights["KSM_Local.conv.weight"] = sines((OUT * size**2, 1, 3), 0.9)
    if size == 3:
        for band in range(3):
            conv = f"FBM.freq_weight_conv_list.{band}"
            weights[f"{conv}.weight"] = sines((1, IN, 3, 3), 1.5 + band)
            weights[f"{conv}.bias"] = sines((1,), 2.5 + band)
    return {PREFIX + name: value for name, value in weights.items()}
