/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_TRACE_H
#define SIDELIGHT_TRACE_H

#include "../lib/end.h"

/*
 * The end of adopted connections, on kernels where mesh_sockops cannot be asked to see it. It runs at each change of state of each
 * TCP socket of the machine, so it is attached only while there are such connections. inet_sk_set_state() calls it before it
 * stores the new state, and tcp_set_state() has told sockops before: sk_err and totals are the same for both.
 */
static __always_inline int state_changes(__u64 *args) /* sk, old state, new state */
{
	struct sock *sk = (struct sock *)args[0];
	struct mesh_told_close out;
	struct mesh_connection *conn;
	struct tcp_sock *tp;

	if ((int)args[2] != BPF_TCP_CLOSE || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (!conn || !conn->traced)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	conn->traced = false;
	account_add(traced_closed);
	if (!end_begin(conn, &out.close))
		return 0;
	out.close.event.event_ns = bpf_ktime_get_ns();
	end_tell(false, &out, conn, tp, args[1]);
	return 0;
}

/*
 * Two of the same. The kernel does not run a tracing program inside of itself: when a socket changes its state in a system call, and an interrupt lets
 * packets of another come in on that CPU just then, the end of that other is not shown to the program that the interrupt found at work (the kernel
 * counts it, as recursion_misses). It is shown to the second one, which is not at work there. State does not change in hard interrupts, so there is no
 * third level.
 */
SEC("tp_btf/inet_sock_set_state")
int mesh_state(__u64 *args)
{
	return state_changes(args);
}

SEC("tp_btf/inet_sock_set_state")
int mesh_state_nested(__u64 *args)
{
	return state_changes(args);
}

#endif
