/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The life of one socket: what each hook does to its state, and which event it sends. */
#ifndef SIDELIGHT_CONNECTION_H
#define SIDELIGHT_CONNECTION_H

#include "account.h"
#include "address.h"
#include "emit.h"
#include "lost.h"
#include "owner.h"
#include "reason.h"
#include "totals.h"

/*
 * Fails when the socket's option memory is used up, which its own process can bring about (setsockopt, up to net.core.optmem_max).
 * Counted by those callers where a connection begins, once each.
 */
static __always_inline struct mesh_connection *connection_create(struct bpf_sock *sk)
{
	return bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
}

/* The socket's cgroup, not the caller's: a process that moves to another cgroup takes no socket along. */
static __always_inline __u64 connection_cgroup(struct tcp_sock *tp)
{
	struct cgroup *cgroup = tp->inet_conn.icsk_inet.sk.sk_cgrp_data.cgroup;
	struct kernfs_node *kn;

	if (!cgroup)
		return 0;
	kn = cgroup->kn;
	return kn ? kn->id : 0;
}

/* What stays the same from here on: who, where from, where to. */
static __always_inline void connection_identify(struct mesh_connection *conn, struct bpf_sock_ops *ctx, struct bpf_sock *sk,
						__u8 role)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	conn->event.role = role;
	conn->event.cookie = bpf_get_socket_cookie(ctx);
	address_from_sockops(&conn->event, ctx);
	if (!tp)
		return;
	conn->event.cgroup_id = connection_cgroup(tp);
	/*
	 * The client has chosen its number and not yet used it. The server has stepped over the SYN, and with TCP Fast Open over
	 * the SYN's data too.
	 */
	conn->event.client_isn = role == MESH_CLIENT ? tp->write_seq : tp->rcv_nxt - 1 - (__u32)tp->bytes_received;
}

/* cgroup/connect4 and 6: connect() was called. A later connect() of the same socket starts a new connection. */
static __always_inline void connection_called(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;

	if (!sk || ctx->protocol != IPPROTO_TCP)
		return;
	conn = connection_create(sk);
	if (!conn)
		return;
	__builtin_memset(conn, 0, sizeof(*conn));
	owner_from_current(&conn->event.owner);
	conn->event.start_ns = bpf_ktime_get_ns();
	conn->phase = MESH_CALLED;
}

/* BPF_SOCK_OPS_TCP_CONNECT_CB: tcp_connect() is about to build the SYN; ports and addresses are chosen. */
static __always_inline void connection_connect(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;
	__u64 now;

	if (!sk)
		return;
	conn = connection_create(sk);
	if (!conn) {
		account_add(storage_failed);
		return;
	}
	account_add(attempts);
	now = bpf_ktime_get_ns();
	if (conn->phase != MESH_CALLED) {
		/* No connect hook ran on this very socket: an MPTCP subflow, or we attached between the two hooks. */
		__builtin_memset(conn, 0, sizeof(*conn));
		owner_from_current(&conn->event.owner);
		conn->event.start_ns = now;
	}
	connection_identify(conn, ctx, sk, MESH_CLIENT);
	conn->event.connect_ns = now;
	conn->phase = MESH_CONNECTING;
	/* From here on, not from the handshake on: a connect that fails must show too. */
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	emit_event(conn, MESH_PRE_CONNECT, MESH_TOLD_ATTEMPT, now);
}

/* BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB. Without state the connect was before our time: left for the sweep to adopt. */
static __always_inline void connection_active(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;

	if (!sk)
		return;
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (!conn || conn->phase != MESH_CONNECTING)
		return;
	conn->event.established_ns = bpf_ktime_get_ns();
	conn->phase = MESH_OPEN;
	account_add(established[MESH_CLIENT]);
	emit_event(conn, MESH_ESTABLISHED, MESH_TOLD_ATTEMPT | MESH_TOLD_ESTABLISHED, conn->event.established_ns);
}

/* BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: an accepted socket; with simultaneous open also one that connects. */
static __always_inline void connection_passive(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;
	__u64 now;

	if (!sk)
		return;
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (conn && conn->phase == MESH_CONNECTING) {
		connection_active(ctx);
		return;
	}
	/* No clone of the listener's state: it listened before our time, and its process stays unknown. */
	if (!conn)
		conn = connection_create(sk);
	if (!conn) {
		account_add(storage_failed);
		return;
	}
	now = bpf_ktime_get_ns();
	connection_identify(conn, ctx, sk, MESH_SERVER);
	conn->event.start_ns = now;
	conn->event.established_ns = now;
	conn->phase = MESH_OPEN;
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	account_add(established[MESH_SERVER]);
	emit_event(conn, MESH_ESTABLISHED, MESH_TOLD_ESTABLISHED, now);
}

/* BPF_SOCK_OPS_TCP_LISTEN_CB, in the context of listen(): whose sockets the accepted ones will be. */
static __always_inline void connection_listen(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;

	if (!sk)
		return;
	conn = connection_create(sk);
	if (!conn)
		return;
	__builtin_memset(conn, 0, sizeof(*conn));
	owner_from_current(&conn->event.owner);
}

/* BPF_SOCK_OPS_STATE_CB to TCP_CLOSE: every connection ends here, failed ones too, and a TIME_WAIT after it is another object. */
static __always_inline void connection_close(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;
	struct mesh_close_event event, *out;
	struct tcp_sock *tp;
	unsigned long sk_flags;
	bool established;
	__u8 old_state = ctx->args[0];
	__u32 err;

	if (!sk)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (!conn) {
		account_add(untracked_closed);
		return;
	}
	/* A socket that connected before and listens now still has the flag that brings us here. */
	if (conn->phase != MESH_CONNECTING && conn->phase != MESH_OPEN)
		return;
	established = conn->phase == MESH_OPEN;
	conn->phase = MESH_CLOSED;
	if (established && conn->event.role == MESH_SERVER)
		account_add(closed[MESH_SERVER]);
	else if (established)
		account_add(closed[MESH_CLIENT]);
	else
		account_add(failed);

	err = tp->inet_conn.icsk_inet.sk.sk_err;
	sk_flags = tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags;
	event.event = conn->event;
	event.event.kind = MESH_CLOSE;
	event.event.reason = reason_of_close(established, old_state, err, sk_flags);
	event.event.old_state = old_state;
	event.event.event_ns = bpf_ktime_get_ns();
	event.sk_err = err;
	totals_read(&event, tp, old_state);
	event.event.told = __sync_fetch_and_or(&conn->told, MESH_TOLD_ATTEMPT | MESH_TOLD_ESTABLISHED | MESH_TOLD_END);
	event.reported_sent_bytes = __sync_lock_test_and_set(&conn->reported_sent_bytes, event.sent_bytes);
	event.reported_received_bytes = __sync_lock_test_and_set(&conn->reported_received_bytes, event.received_bytes);
	event.reported_retransmits = __sync_lock_test_and_set(&conn->reported_retransmits, event.retransmits);
	out = emit_reserve(sizeof(*out), MESH_CLOSE);
	if (!out) {
		lost_add(&event);
		return;
	}
	*out = event;
	bpf_ringbuf_submit(out, emit_flags());
}

#endif
