"""A classifier with a hidden layer, over the features of any network of `dyn.models`.

It replaces a network's own head in published transfer learning: LeBien, Zhong, Campos-Cerqueira, Velev,
Dodhia, Lavista Ferres, Aide: A pipeline for identification of bird and frog species in tropical soundscape
recordings using a convolutional neural network. Ecological Informatics 59, 2020.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.attention import global_average
from dyn.layers.fields import CheckedModule
from dyn.models.dropout import Dropout
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


class Classifier(CheckedModule):
    """Global average of the last features, a hidden layer, dropout, a linear classifier.

        logits = V ReLU(W mean(f(x)) + w) + v

    Attributes:
        num_classes: number of logits; 0 for the hidden layer; None for the features of the network f.
        backbone: makes the network f from `name=`, such as `partial(ResNet50, num_classes=None)`.
        hidden: size of the hidden layer.
        dense: makes the last layer, `head`, a callable with `nn.Dense`'s arguments such as `DCDDense`.
        dropout: share of the hidden layer's outputs dropped in training.
        dtype: dtype of the computation; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.models import Classifier, ResNet18
        >>> backbone = partial(ResNet18, num_classes=None, width=8, stem="small")
        >>> net = Classifier(num_classes=24, backbone=backbone, hidden=32)
        >>> x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
        >>> logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> sorted(variables["params"]), logits.shape
        (['backbone', 'head', 'hidden'], (2, 24))
    """

    num_classes: int | None
    backbone: Callable[..., nn.Module]
    hidden: int = 512
    dense: Callable[..., nn.Module] = nn.Dense
    dropout: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, head_only: bool = False
    ) -> Array | tuple[Array, ...]:
        """Returns the logits `[B, num_classes]` or the features of `x`, `[B, *spatial, C]`.

        Args:
            x: pictures or series, channels last.
            train: as in the backbone; needs the rng `dropout` if there is any.
            head_only: whether only `hidden` and `head` train: the backbone then runs as in inference.
        """
        features = self.backbone(name="backbone")(x, train=train and not head_only)
        if self.num_classes is None:
            return features
        x = features[-1]
        x = global_average(x, x.ndim - 2, float32_or_wider(x)).astype(x.dtype)
        x = nn.Dense(
            self.hidden, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name="hidden"
        )(x)
        x = Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        if self.num_classes == 0:
            return x
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)
