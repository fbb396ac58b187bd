/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_TOTALS_H
#define SIDELIGHT_TOTALS_H

#include "../abi.h"
#include "../kernel.h"

/*
 * Payload that left: what was acknowledged and what is under way, less the SYN of a client and our own FIN, which both count as
 * bytes there. Not bytes_sent - bytes_retrans: bytes_sent is raised before the segment is queued, and one that a local qdisc drops is
 * sent again without being counted as a retransmission (measured: 31 segments too many of 2,000,000 bytes through a small tbf).
 */
static __always_inline __u64 totals_sent(struct tcp_sock *tp, __u8 role, __u8 state)
{
	__u64 sent = tp->bytes_acked + (__u32)(tp->snd_nxt - tp->snd_una);

	if (role == MESH_CLIENT && sent)
		sent--;
	switch (state) {
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSING:
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_TIME_WAIT:
		/* tcp_send_fin() gave the FIN the last number of all; it has left when nothing is unsent. */
		if (sent && tp->snd_nxt == tp->write_seq)
			sent--;
	}
	return sent;
}

/* rcv_nxt, and bytes_received with it, steps over the peer's FIN; only tcp_fin() sets SOCK_DONE, right after that step. */
static __always_inline __u64 totals_received(struct tcp_sock *tp)
{
	return tp->bytes_received - !!(tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags & 1UL << SOCK_DONE);
}

/* What a socket has moved so far. state: the one it is in, or at the end the one it left. */
static __always_inline void totals_read(struct mesh_close_event *out, struct tcp_sock *tp, __u8 state)
{
	out->sent_bytes = totals_sent(tp, out->event.role, state);
	out->received_bytes = totals_received(tp);
	out->retransmits = tp->total_retrans;
	/* Until the handshake is done there is nothing else to send again. */
	if (!out->event.established_ns)
		out->syn_retransmits = out->retransmits;
	out->srtt_us = tp->srtt_us >> 3;
	/* tcp_disconnect() forgets the one and not the other. */
	out->min_rtt_us = tp->srtt_us ? tp->rtt_min.s[0].v : ~0U;
}

#endif
