"""The compiled kernels (csrc/bindings.cpp). Addresses and streams are integers, 0 for none."""

ARCHS: str
DTYPES: dict[str, int]

def softmax_fwd(
    *,
    out: int,
    x: int,
    mask: int,
    rng_state: int,
    dtype: int,
    mask_dtype: int,
    mask_sizes: tuple[int, int, int],
    mask_strides: tuple[int, int, int, int, int],
    n_rows: int,
    n_cols: int,
    stride_xm: int,
    scale: float,
    threshold: int,
    keep_scale: float,
    log: bool,
    stream: int,
) -> None: ...
def softmax_bwd(
    *,
    dx: int,
    dout: int,
    saved: int,
    mask: int,
    rng_state: int,
    dtype: int,
    mask_dtype: int,
    mask_sizes: tuple[int, int, int],
    mask_strides: tuple[int, int, int, int, int],
    n_rows: int,
    n_cols: int,
    stride_dm: int,
    stride_sm: int,
    scale: float,
    threshold: int,
    keep_scale: float,
    log: bool,
    stream: int,
) -> None: ...
