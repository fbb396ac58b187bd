/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a socket itself tells of its connection, at any time of its life. */
#ifndef SIDELIGHT_SOCKET_H
#define SIDELIGHT_SOCKET_H

#include "address.h"
#include "cgroup.h"

/*
 * bytes_acked counts the SYN of who connected, whose acknowledgement moved snd_una; an accepted socket's snd_una starts behind its
 * SYN. bytes_received counts no SYN, and the FIN like rcv_nxt does.
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
	__u64 acked = tp->bytes_acked + (__u32)(tp->snd_nxt - tp->snd_una);

	if (bucket && bucket->fastreuse < 0)
		return MESH_CLIENT;
	switch (tp->inet_conn.icsk_inet.sk.__sk_common.skc_state) {
	case BPF_TCP_SYN_SENT:
		return MESH_CLIENT;
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSING:
	case BPF_TCP_LAST_ACK:
		/* Our FIN counts too, once it left: as in totals_sent(). */
		if (acked && tp->snd_nxt == tp->write_seq)
			acked--;
	}
	return acked > tp->bytes_sent - tp->bytes_retrans ? MESH_CLIENT : MESH_SERVER;
}

#endif
