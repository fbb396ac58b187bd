/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a socket itself tells of its connection, at any time of its life. */
#ifndef SIDELIGHT_SOCKET_H
#define SIDELIGHT_SOCKET_H

#include "address.h"
#include "cgroup.h"
#include "totals.h"

/*
 * bytes_acked counts the SYN of who connected, whose acknowledgement moved snd_una; an accepted socket's snd_una starts behind its
 * SYN. bytes_received counts no SYN; the FIN and, with TCP Fast Open, the SYN's data it counts like rcv_nxt does.
 */
static __always_inline __u32 socket_client_isn(struct tcp_sock *tp, __u8 role)
{
	return role == MESH_CLIENT ? tp->snd_una - (__u32)tp->bytes_acked : tp->rcv_nxt - 1 - (__u32)tp->bytes_received;
}

/* Fills in who and where; event->role is there. */
static __always_inline void socket_identify(struct mesh_event *event, struct tcp_sock *tp)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	address_from_socket(event, &sk->__sk_common);
	event->cgroup_id = cgroup_id_of(sk);
	event->client_isn = socket_client_isn(tp, event->role);
}

/*
 * Who connected and who accepted. A port that connect() chose marks its bucket; what is left is who bound a port and connected
 * from it, and who accepted. These two differ by the SYN, which only the client's bytes_acked counts.
 */
static __always_inline __u8 socket_role(struct tcp_sock *tp)
{
	struct inet_bind_bucket *bucket = tp->inet_conn.icsk_bind_hash;
	__u8 state = tp->inet_conn.icsk_inet.sk.__sk_common.skc_state;

	if (state == BPF_TCP_SYN_SENT || (bucket && bucket->fastreuse < 0))
		return MESH_CLIENT;
	/* As a server's, which has no SYN to leave out, a client's total is one too many. */
	return totals_sent(tp, MESH_SERVER, state) > tp->bytes_sent - tp->bytes_retrans ? MESH_CLIENT : MESH_SERVER;
}

#endif
