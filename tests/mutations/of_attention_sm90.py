"""Faults in attention's forward by wgmma and TMA."""

from __future__ import annotations

from mutation import Mutation
from selections import ATTENTION_SM90, RACES_OF_ATTENTION_SM90

CONSUMER, PRODUCER, TILES = (f"csrc/attention/{name}.cuh" for name in ("fwd_sm90", "fwd_producer_sm90", "tiles_sm90"))
CHOICE = "csrc/attention/attention_choice.h"
ATTENTION_FWD_SM90 = [
    Mutation(
        PRODUCER, "k_empty + 8 * stage, at_.parity() ^ 1);", "k_empty + 8 * stage, at_.parity());", ATTENTION_SM90
    ),
    Mutation(PRODUCER, "      __syncwarp();  // all lanes", "      // all lanes", RACES_OF_ATTENTION_SM90),
    Mutation(PRODUCER, "      fence_proxy_async();\n", "", RACES_OF_ATTENTION_SM90),
    Mutation(PRODUCER, "+ stage * F::kKeyBytes, left);", "+ stage * F::kKeyBytes, left + 1);", ATTENTION_SM90),
    Mutation(PRODUCER, "zeroes ? shared_.landed : shared_.v_full", "shared_.v_full", RACES_OF_ATTENTION_SM90),
    Mutation(TILES, "none ? 0 : (end + kSm90Keys - 1) / kSm90Keys", "none ? 0 : end / kSm90Keys", ATTENTION_SM90),
    Mutation(
        TILES, "mbarrier_init(q_empty + 8 * s, 4);", "mbarrier_init(q_empty + 8 * s, 1);", RACES_OF_ATTENTION_SM90
    ),
    Mutation(
        CONSUMER,
        "before.stage(), before.parity());\n        wgmma_fence(s",
        "before.stage(), before.parity() ^ 1);\n        wgmma_fence(s",
        RACES_OF_ATTENTION_SM90,
    ),
    Mutation(CONSUMER, "        wgmma_fence(s, o, p);\n", "", RACES_OF_ATTENTION_SM90),
    Mutation(CONSUMER, "wgmma_wait<0>(o, p);\n        if", "wgmma_wait<1>(o, p);\n        if", RACES_OF_ATTENTION_SM90),
    Mutation(
        CONSUMER,
        "        if (last) give_back(shared_.k_empty",
        "        give_back(shared_.k_empty",
        RACES_OF_ATTENTION_SM90,
    ),
    Mutation(CONSUMER, "o[i] *= alpha[i / 2 % 2];", "o[i] *= alpha[i % 2];", ATTENTION_SM90),
    Mutation(CONSUMER, "keep_scale = 256.0f /", "keep_scale = 255.0f /", ATTENTION_SM90),
    Mutation(
        CONSUMER,
        "mask.template apply<false>(s, query + warp_row_, key);",
        "mask.template apply<false>(s, query, key);",
        ATTENTION_SM90,
    ),
    Mutation(
        CONSUMER,
        "drop(kept[i], step(p, 2 * i), step(p, 2 * i + 1));",
        "drop(kept[i], step(p, 2 * i + 1), step(p, 2 * i));",
        ATTENTION_SM90,
    ),
    Mutation(CONSUMER, "upper ? w[i] : w[i + 2], 2);", "upper ? w[i + 2] : w[i], 2);", ATTENTION_SM90),
    Mutation(
        CONSUMER,
        "      if (tile >= tiles && tiles > 0) pass(end, item.end_block - item.first_block, true);\n",
        "",
        RACES_OF_ATTENTION_SM90,
    ),
    Mutation(
        CONSUMER,
        "        __syncwarp();  // all lanes have seen",
        "        // all lanes have seen",
        RACES_OF_ATTENTION_SM90,
    ),
    Mutation(TILES, "if (mask.is_key_mask()) return", "if (false) return", ATTENTION_SM90),
    Mutation(CONSUMER, "        if constexpr (kMasks) wgmma_wait<0>(o, p);", "", RACES_OF_ATTENTION_SM90),
    Mutation(CHOICE, "if (arch != 90)", "if (arch < 90)", RACES_OF_ATTENTION_SM90),
    Mutation(CHOICE, " || strides[i] % kWidth != 0", "", ATTENTION_SM90),
]
