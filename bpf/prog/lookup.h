/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_PROG_LOOKUP_H
#define SIDELIGHT_PROG_LOOKUP_H

#include "../lib/inbound.h"

/*
 * Runs when a packet looks for a listener: a SYN, as segments of a connection find that. So replies are never judged; but one that comes late, for a
 * connection that is gone, is, and its refusal is told as any: the context has no flags of TCP. A drop is answered by a
 * reset, and the listener never learns of it. Attached to each network namespace, while there are policies.
 */
SEC("sk_lookup")
int mesh_lookup(struct bpf_sk_lookup *ctx)
{
	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	return inbound_judge(ctx);
}

#endif
