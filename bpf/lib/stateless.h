/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections whose state finds no room, which a process can bring about by using up its socket's option memory: they must not be a
 * way to hide. They are counted as all others, and told by their end, which the socket itself still knows. What is missing is the
 * process and the times.
 */
#ifndef SIDELIGHT_STATELESS_H
#define SIDELIGHT_STATELESS_H

#include "account.h"
#include "callbacks.h"
#include "end.h"
#include "socket.h"

/*
 * The role is kept where a process cannot reach: in the socket's own mask of callbacks. These two run when a segment is sent again,
 * which is rare, and do nothing then.
 */
#define STATELESS_CLIENT BPF_SOCK_OPS_RTO_CB_FLAG
#define STATELESS_SERVER BPF_SOCK_OPS_RETRANS_CB_FLAG

static __always_inline void stateless_begin(struct bpf_sock_ops *ctx, __u8 role)
{
	if (role == MESH_CLIENT) {
		account_step(ACCOUNT(storage_failed[MESH_CLIENT]), ACCOUNT(attempts));
		callbacks_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | STATELESS_CLIENT);
		return;
	}
	account_add(storage_failed[MESH_SERVER]);
	account_step(ACCOUNT(stateless_established), ACCOUNT(established[MESH_SERVER]));
	callbacks_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | STATELESS_SERVER);
}

/* BPF_SOCK_OPS_TCP_LISTEN_CB: accepted sockets inherit the mask, and must not take their listener's past for their own. */
static __always_inline void stateless_forget(struct bpf_sock_ops *ctx)
{
	__u32 marks = ctx->bpf_sock_ops_cb_flags & (STATELESS_CLIENT | STATELESS_SERVER);

	if (marks)
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~marks);
}

/* BPF_SOCK_OPS_HDR_OPT_LEN_CB, which the socket asked for when it had another connection, or its listener had: this one looks for nothing. */
static __always_inline void stateless_segment(struct bpf_sock_ops *ctx)
{
	__u32 callbacks = ctx->bpf_sock_ops_cb_flags;

	if (callbacks & (STATELESS_CLIENT | STATELESS_SERVER))
		bpf_sock_ops_cb_flags_set(ctx, callbacks & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/* BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB. Without the mark it began before we did and was not adopted. */
static __always_inline void stateless_established(struct bpf_sock_ops *ctx)
{
	if (!(ctx->bpf_sock_ops_cb_flags & STATELESS_CLIENT))
		return;
	account_step(ACCOUNT(stateless_established), ACCOUNT(established[MESH_CLIENT]));
}

/* Whether the socket that closes had a connection without state; then the event is filled in. */
static __always_inline bool stateless_end(struct bpf_sock_ops *ctx, struct tcp_sock *tp, struct mesh_close_event *close)
{
	struct mesh_event *event = &close->event;
	__u32 marks = ctx->bpf_sock_ops_cb_flags;
	__u64 now;

	if (!(marks & (STATELESS_CLIENT | STATELESS_SERVER))) {
		account_add(untracked_closed);
		return false;
	}
	__builtin_memset(close, 0, sizeof(*close));
	now = bpf_ktime_get_ns();
	event->role = marks & STATELESS_SERVER ? MESH_SERVER : MESH_CLIENT;
	event->cookie = bpf_get_socket_cookie(ctx);
	event->flags = MESH_STATELESS;
	event->start_ns = now;
	/* SYN_RECV: a simultaneous open that did not get through. */
	if (ctx->args[0] != BPF_TCP_SYN_SENT && ctx->args[0] != BPF_TCP_SYN_RECV)
		event->established_ns = now;
	socket_identify(event, tp);
	return true;
}

#endif
