/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_ADDRESS_H
#define SIDELIGHT_ADDRESS_H

#include "../abi.h"
#include "../kernel.h"

static __always_inline void address_from_v4(__u8 *to, __u32 v4)
{
	__u32 *word = (__u32 *)to;

	word[0] = 0;
	word[1] = 0;
	word[2] = bpf_htonl(0xffff);
	word[3] = v4;
}

/* An IPv6 socket that talks IPv4 already holds the mapped form (tcp_v4_connect and sk_rcv_saddr_set keep it up to date). */
static __always_inline void address_from_socket(struct mesh_event *event, const struct sock_common *skc)
{
	__u32 *local = (__u32 *)event->local_addr, *peer = (__u32 *)event->peer_addr;

	if (skc->skc_family == AF_INET) {
		address_from_v4(event->local_addr, skc->skc_rcv_saddr);
		address_from_v4(event->peer_addr, skc->skc_daddr);
	} else {
		local[0] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		local[1] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		local[2] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		local[3] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[3];
		peer[0] = skc->skc_v6_daddr.in6_u.u6_addr32[0];
		peer[1] = skc->skc_v6_daddr.in6_u.u6_addr32[1];
		peer[2] = skc->skc_v6_daddr.in6_u.u6_addr32[2];
		peer[3] = skc->skc_v6_daddr.in6_u.u6_addr32[3];
	}
	event->local_port = skc->skc_num;
	event->peer_port = bpf_ntohs(skc->skc_dport);
}

#endif
