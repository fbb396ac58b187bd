/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections from before our time: they get the state that the hooks would have given them. */
#ifndef SIDELIGHT_ADOPT_H
#define SIDELIGHT_ADOPT_H

#include "account.h"
#include "listener.h"
#include "owner.h"
#include "propagate.h"
#include "socket.h"
#include "totals.h"

static __always_inline void adopt_owner(struct sock *sk, struct task_struct *task)
{
	struct mesh_connection *conn;

	switch (sk->__sk_common.skc_state) {
	case BPF_TCP_CLOSE:
	case BPF_TCP_TIME_WAIT:
	case BPF_TCP_NEW_SYN_RECV:
		return;
	}
	conn = bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (conn && conn->phase == MESH_IDLE && !conn->event.owner.pid)
		owner_from_task(&conn->event.owner, task);
}

/*
 * A listener that was there before us, or before its cgroup was of the mesh. It is met once for each process that has it, and others that share its port
 * come to the same entry, so their refs cannot be counted: the entry stays until somebody else listens there.
 */
#define ADOPTED_REFS (1U << 30)

static __always_inline void adopt_listener(struct sock *sk)
{
	struct mesh_listen key;
	struct mesh_listener *l;
	__u32 workload = identity_of_cgroup(sk->sk_cgrp_data.cgroup);

	listener_key(&key, &sk->__sk_common, BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie));
	l = bpf_map_lookup_elem(&listeners, &key);
	if (!l && workload && listener_make(&key, workload, ADOPTED_REFS))
		return;
	if (l)
		*(volatile __u32 *)&l->workload = workload;
}

/*
 * Whether the end will come to mesh_sockops. Where a program may not ask for callbacks on behalf of another's socket (before 6.12)
 * mesh_state has to look for it.
 */
static __always_inline bool adopt_callbacks(struct tcp_sock *tp)
{
	int flags = tp->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;

	return !bpf_setsockopt(tp, SOL_TCP, MESH_TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
}

static __always_inline void adopt_connection(struct tcp_sock *tp)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	__u8 state = sk->__sk_common.skc_state;
	struct mesh_close_event now = {};
	struct mesh_connection *conn;

	switch (state) {
	case BPF_TCP_LISTEN:
		if (trace_option)
			trace_listen(tp);
		return;
	case BPF_TCP_ESTABLISHED:
	case BPF_TCP_SYN_SENT:
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		break;
	default: /* SYN_RECV: its ESTABLISHED_CB will tell */
		return;
	}
	conn = bpf_sk_storage_get(&connections, tp, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn) {
		account_add(adopt_failed);
		return;
	}
	if (conn->phase != MESH_IDLE) /* the hooks know it */
		return;
	conn->event.role = socket_role(tp);
	conn->event.cookie = bpf_get_socket_cookie(tp);
	conn->event.start_ns = bpf_ktime_get_ns();
	socket_identify(&conn->event, tp);
	if (state == BPF_TCP_SYN_SENT) {
		conn->event.flags = MESH_ADOPTED;
		conn->phase = MESH_CONNECTING;
		account_step(ACCOUNT(adopted_connecting), ACCOUNT(attempts));
	} else {
		conn->event.flags = MESH_ADOPTED | MESH_ADOPTED_OPEN;
		conn->event.established_ns = conn->event.start_ns;
		/* What it moved before is not ours to count. */
		now.event.role = conn->event.role;
		now.event.established_ns = conn->event.established_ns;
		totals_read(&now, tp, state);
		conn->reported_sent_bytes = now.sent_bytes;
		conn->reported_received_bytes = now.received_bytes;
		conn->reported_retransmits = now.retransmits;
		conn->phase = MESH_OPEN;
		if (conn->event.role == MESH_SERVER)
			account_add(adopted[MESH_SERVER]);
		else
			account_add(adopted[MESH_CLIENT]);
	}
	conn->traced = !adopt_callbacks(tp);
	if (conn->traced)
		account_add(traced);
}

#endif
