/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The life of one socket: what each hook does to its state, and which event it sends. */
#ifndef SIDELIGHT_CONNECTION_H
#define SIDELIGHT_CONNECTION_H

#include "account.h"
#include "decided.h"
#include "emit.h"
#include "end.h"
#include "inbound.h"
#include "listener.h"
#include "owner.h"
#include "propagate.h"
#include "socket.h"
#include "stateless.h"
#include "totals.h"

/*
 * Fails when the socket's option memory is used up, which its own process can bring about (setsockopt, up to net.core.optmem_max).
 * Counted by those callers where a connection begins, once each.
 */
static __always_inline struct mesh_connection *connection_create(struct bpf_sock *sk)
{
	return bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
}

/*
 * State for a socket's next connection. What its last one had is left to whoever still looks at it: a sweep holds no lock, and would tell of the one
 * connection what it takes over of the other.
 */
static __always_inline struct mesh_connection *connection_renew(const bool in_mesh, struct bpf_sock *sk)
{
	struct mesh_connection *conn = connection_create(sk);

	if (!conn || conn->phase == MESH_IDLE)
		return conn;
	decided_abandoned(decided_of(in_mesh, conn));
	bpf_sk_storage_delete(&connections, sk);
	return connection_create(sk);
}

/* What stays the same from here on: who, where from, where to. */
static __always_inline void connection_identify(struct mesh_connection *conn, struct bpf_sock_ops *ctx, struct bpf_sock *sk,
						__u8 role)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	conn->event.role = role;
	conn->event.cookie = bpf_get_socket_cookie(ctx);
	if (!tp)
		return;
	socket_identify(&conn->event, tp);
	/* The client has chosen its number and not yet used it: tcp_connect_init() comes after the hook. */
	if (role == MESH_CLIENT)
		conn->event.client_isn = tp->write_seq;
}

/*
 * cgroup/connect4 and 6: connect() was called. A later connect() of the same socket starts a new connection. NULL: it is none of ours, or
 * there is no room for its state.
 */
static __always_inline struct mesh_connection *connection_called(const bool in_mesh, struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;

	if (!sk || ctx->protocol != IPPROTO_TCP)
		return NULL;
	conn = connection_renew(in_mesh, sk);
	if (!conn)
		return NULL;
	owner_from_current(&conn->event.owner);
	conn->event.start_ns = bpf_ktime_get_ns();
	conn->phase = MESH_CALLED;
	return conn;
}

/* BPF_SOCK_OPS_TCP_CONNECT_CB: tcp_connect() is about to build the SYN; ports and addresses are chosen. */
static __always_inline void connection_connect(const bool in_mesh, const bool traced, struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;
	struct mesh_decided *decided;
	bool called;
	__u64 now;

	if (!sk)
		return;
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	/* Else no connect hook ran on this very socket: an MPTCP subflow, or we attached between the two hooks. */
	called = conn && conn->phase == MESH_CALLED;
	if (!called)
		conn = connection_renew(in_mesh, sk);
	decided = decided_of(in_mesh, conn);
	decided_sent(decided);
	if (in_mesh && mesh_has & MESH_HAS_POLICIES)
		inbound_announce(decided, sk);
	if (!conn) {
		stateless_begin(ctx, MESH_CLIENT);
		return;
	}
	now = bpf_ktime_get_ns();
	if (!called) {
		owner_from_current(&conn->event.owner);
		conn->event.start_ns = now;
	}
	connection_identify(conn, ctx, sk, MESH_CLIENT);
	conn->event.connect_ns = now;
	conn->phase = MESH_CONNECTING;
	/* From here on, not from the handshake on: a connect that fails must show too. */
	callbacks_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	if (traced)
		trace_begin(ctx, conn);
	emit_event(conn, decided, MESH_PRE_CONNECT, MESH_TOLD_ATTEMPT, ACCOUNT(attempts), now);
}

/*
 * BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB and BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: the handshake is done. The passive one is an accepted
 * socket's, and with simultaneous open also that of one that connects.
 */
static __always_inline void connection_established(const bool in_mesh, const bool traced, struct bpf_sock_ops *ctx, bool passive)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_decided *decided;
	struct mesh_connection *conn;
	struct tcp_sock *tp;
	__u32 tells, step;
	__u64 now;

	if (!sk)
		return;
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	now = bpf_ktime_get_ns();
	decided = decided_of(in_mesh, conn);
	decided_established(decided);
	if (conn && conn->phase == MESH_CONNECTING) {
		tells = MESH_TOLD_ATTEMPT | MESH_TOLD_ESTABLISHED;
		step = ACCOUNT(established[MESH_CLIENT]);
	} else if (!passive || (!conn && ctx->bpf_sock_ops_cb_flags & STATELESS_CLIENT)) {
		if (!conn)
			stateless_established(ctx);
		return;
	} else {
		/* No clone of the listener's state: it listened before our time, and its process stays unknown. */
		if (!conn)
			conn = connection_create(sk);
		if (!conn) {
			stateless_begin(ctx, MESH_SERVER);
			return;
		}
		connection_identify(conn, ctx, sk, MESH_SERVER);
		if (in_mesh)
			conn->looks = 0;
		decided = inbound_admitted(in_mesh, conn);
		if (traced)
			trace_read(ctx, conn);
		conn->event.start_ns = now;
		tells = MESH_TOLD_ESTABLISHED;
		step = ACCOUNT(established[MESH_SERVER]);
	}
	conn->event.established_ns = now;
	conn->phase = MESH_OPEN;
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp) {
		conn->syn_retransmits = tp->total_retrans; /* of a server they are those of its SYN-ACK */
		/* With TCP Fast Open the first bytes were in the SYN. */
		conn->first_sent_ns = first_bytes && tp->bytes_sent ? now : 0;
		conn->first_received_ns = first_bytes && totals_received(tp) ? now : 0;
	}
	/* One that was adopted while it connected: from here on its end comes to us, not to mesh_state. */
	if (conn->traced) {
		conn->traced = false;
		account_add(traced_closed);
	}
	if (traced)
		trace_end(ctx, conn, true);
	callbacks_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | first_bytes_flag());
	emit_event(conn, decided, MESH_ESTABLISHED, tells, step, now);
}

/* A listener's `looks` says that it has a ref of its entry in `listeners`; what it accepts begins to count with 0. */
static __always_inline void connection_listens(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct mesh_connection *conn)
{
	struct tcp_sock *tp;
	struct mesh_listen key;
	struct sock *listener;

	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	listener = &tp->inet_conn.icsk_inet.sk;
	listener_key(&key, &listener->__sk_common, bpf_get_netns_cookie(ctx));
	if (!listener_add(&key, identity_of_cgroup(listener->sk_cgrp_data.cgroup)))
		return;
	conn->looks = true;
	/* Its end is to be seen, too. What it accepts inherits this and asks for it anyway. */
	callbacks_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void connection_listened(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tp)
{
	struct mesh_connection *conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	struct mesh_listen key;

	if (!conn || !conn->looks)
		return;
	conn->looks = false;
	listener_key(&key, &tp->inet_conn.icsk_inet.sk.__sk_common, bpf_get_netns_cookie(ctx));
	listener_remove(&key);
}

/* BPF_SOCK_OPS_TCP_LISTEN_CB, in the context of listen(): whose sockets the accepted ones will be. */
static __always_inline void connection_listen(const bool in_mesh, const bool traced, struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;

	if (!sk)
		return;
	stateless_forget(ctx);
	if (traced)
		trace_listen(ctx);
	conn = connection_renew(in_mesh, sk);
	if (!conn)
		return;
	owner_from_current(&conn->event.owner);
	if (in_mesh)
		connection_listens(ctx, sk, conn);
}

/*
 * BPF_SOCK_OPS_HDR_OPT_LEN_CB: a segment is about to leave, and asks how much room its options want; none, for us, but for a SYN that is to carry a trace id. It
 * comes only while the first bytes are looked for, and not for long: it runs per segment.
 */
static __always_inline void connection_segment(const bool traced, struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;
	struct tcp_sock *tp;

	/* tcp_current_mss() asks too, without a segment. */
	if (!sk || ctx->args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS)
		return;
	if (traced && trace_is_syn(ctx)) {
		trace_reserve(ctx);
		return;
	}
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (!conn) {
		stateless_segment(ctx);
		return;
	}
	if (!conn->first_sent_ns && ctx->skb_len)
		conn->first_sent_ns = bpf_ktime_get_ns();
	if (!conn->first_received_ns) {
		tp = bpf_skc_to_tcp_sock(sk);
		if (tp && totals_received(tp))
			conn->first_received_ns = bpf_ktime_get_ns();
	}
	if ((conn->first_sent_ns && conn->first_received_ns) || ++conn->looks == first_bytes_looks)
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/* BPF_SOCK_OPS_STATE_CB to TCP_FIN_WAIT1: our FIN is about to be sent. */
static __always_inline void connection_fin(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;
	struct tcp_sock *tp;

	if (!sk)
		return;
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!conn || !tp)
		return;
	conn->fin_data_segs = tp->data_segs_in + 1;
	conn->fin_received = tp->bytes_received;
}

/* BPF_SOCK_OPS_STATE_CB to TCP_CLOSE: every connection ends here, failed ones too, and a TIME_WAIT after it is another object. */
static __always_inline void connection_close(const bool in_mesh, const bool traced, struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_told_close out;
	struct mesh_connection *conn;
	struct tcp_sock *tp;
	/* Once, at its place: clang moves the context's pointer for a second look, which the verifier does not allow. */
	__u32 old_state = *(volatile __u32 *)&ctx->args[0];

	if (!sk)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	if (in_mesh && old_state == BPF_TCP_LISTEN) {
		connection_listened(ctx, sk, tp);
		return;
	}
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (traced && conn)
		trace_end(ctx, conn, false);
	decided_ended(decided_of(in_mesh, conn), old_state != BPF_TCP_SYN_SENT && old_state != BPF_TCP_SYN_RECV);
	if (conn) {
		/* Another program asked for these callbacks, and mesh_state sees the end too. */
		if (conn->traced || !end_begin(conn, &out.close))
			return;
		if (in_mesh && out.close.event.flags & MESH_DECIDED) {
			out.decision = decided_room(conn)->decision;
			if (out.close.event.role == MESH_SERVER)
				inbound_closed(&out.close.event);
		}
	} else if (!stateless_end(ctx, tp, &out.close)) {
		return;
	}
	out.close.event.event_ns = bpf_ktime_get_ns();
	end_tell(in_mesh, &out, conn, tp, old_state);
}

#endif
