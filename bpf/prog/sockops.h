/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_SOCKOPS_H
#define SIDELIGHT_SOCKOPS_H

#include "../lib/connection.h"

/*
 * The kernel calls this 12 to 13 times for a loopback connection, both ends, and most calls ask for tuning that is none of our
 * business (TIMEOUT_INIT, RWND_INIT, NEEDS_ECN, BASE_RTT): they leave at once, with the reply as they found it, which means
 * "the kernel's own value" to all of them.
 */
static __always_inline int sockops(const bool in_mesh, const bool traced, struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connection_connect(in_mesh, traced, ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		connection_established(in_mesh, traced, ctx, ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		connection_listen(in_mesh, traced, ctx);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		connection_segment(traced, ctx);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		if (traced)
			trace_write(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == BPF_TCP_CLOSE)
			connection_close(in_mesh, traced, ctx);
		else if (ctx->args[1] == BPF_TCP_FIN_WAIT1)
			connection_fin(ctx);
		break;
	}
	return 1;
}

/* One of the four is attached. Of the others those are empty that are for a mesh, or for trace ids, where there is none. */
SEC("sockops")
int mesh_sockops(struct bpf_sock_ops *ctx)
{
	return sockops(false, false, ctx);
}

SEC("sockops")
int mesh_sockops_in_mesh(struct bpf_sock_ops *ctx)
{
	return mesh ? sockops(true, false, ctx) : 1;
}

SEC("sockops")
int mesh_sockops_traced(struct bpf_sock_ops *ctx)
{
	return trace_option && !mesh ? sockops(false, true, ctx) : 1;
}

SEC("sockops")
int mesh_sockops_traced_in_mesh(struct bpf_sock_ops *ctx)
{
	return trace_option && mesh ? sockops(true, true, ctx) : 1;
}

#endif
