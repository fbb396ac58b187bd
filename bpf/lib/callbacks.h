/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_CALLBACKS_H
#define SIDELIGHT_CALLBACKS_H

#include "../kernel.h"

/* Whether the times of the first bytes are looked for. Set at load. */
const volatile bool first_bytes = true;

/* At so many segments that leave: who only receives sends acknowledgements, who only sends would never find the other time. */
static const __u8 first_bytes_looks = 16;

static __always_inline __u32 first_bytes_flag(void)
{
	return first_bytes ? BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG : 0;
}

/* Asks for callbacks beside those that other programs asked for. */
static __always_inline void callbacks_set(struct bpf_sock_ops *ctx, __u32 flags)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | flags);
}

#endif
