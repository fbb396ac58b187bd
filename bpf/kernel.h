/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel's own structs, cut down to the fields that are read. CO-RE moves each access to where the running kernel has the
 * field, so the order here means nothing. No vmlinux.h: what we depend on is this page.
 */
#ifndef SIDELIGHT_KERNEL_H
#define SIDELIGHT_KERNEL_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	__u64 id; /* equals the inode number of the cgroup's directory on 64-bit kernels */
};

struct cgroup {
	struct kernfs_node *kn;
	int level; /* 0 for the root */
	struct cgroup *ancestors[]; /* by level, since 6.1 */
};

struct cgroup___ids { /* before */
	int level;
	__u64 ancestor_ids[];
};

struct sock_cgroup_data {
	struct cgroup *cgroup; /* a plain pointer since 5.15 (8520e224f547) */
};

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	possible_net_t skc_net;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num; /* the local port */
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags; /* bits of enum sock_flags */
};

struct sock {
	struct sock_common __sk_common;
	int sk_err;
	__u16 sk_protocol;
	__u8 sk_shutdown; /* RCV_SHUTDOWN, SEND_SHUTDOWN */
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	struct sock sk;
};

struct inet_bind_bucket {
	signed char fastreuse; /* -1: connect() chose the port */
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct inet_bind_bucket *icsk_bind_hash;
};

struct minmax_sample {
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 write_seq;
	__u32 snd_nxt;
	__u32 snd_una;
	__u32 rcv_nxt;
	__u32 total_retrans;
	__u32 srtt_us; /* eight times the smoothed RTT */
	struct minmax rtt_min;
	__u8 bpf_sock_ops_cb_flags;
	__u32 data_segs_in; /* segments with payload, whatever became of it */
	int linger2; /* TCP_LINGER2; below 0: no FIN_WAIT2 for an orphan */
};

struct css_set {
	struct cgroup *dfl_cgrp; /* its cgroup v2 */
};

struct task_struct {
	unsigned int flags;
	struct css_set *cgroups;
	int tgid;
	__u64 start_boottime;
	struct task_struct *group_leader;
	char comm[16];
};

struct socket {
	struct sock *sk;
};

struct file;
struct bpf_map;

struct seq_file {
	unsigned long size; /* of its buffer */
	unsigned long count; /* what is in it */
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

/* net/core/bpf_sk_storage.c */
struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
};

/* net/ipv4/tcp_ipv4.c */
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

/* kernel/bpf/task_iter.c */
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

/* include/net/sock.h: the first two of enum sock_flags, as they are since 2.6.12 */
enum sock_flags {
	SOCK_DEAD,
	SOCK_DONE,
};

#define RCV_SHUTDOWN 1 /* include/net/sock.h */

#define TCP_SAVE_SYN 27 /* include/uapi/linux/tcp.h */
#define TCP_FLAG_SYN_BIT 0x02 /* include/net/tcp.h: TCPHDR_SYN, TCPHDR_ACK */
#define TCP_FLAG_ACK_BIT 0x10

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

#define AF_INET 2
#define AF_INET6 10
#define SOL_TCP 6

/* include/uapi/linux/bpf.h since 6.12: a setsockopt for programs, level SOL_TCP. An older kernel says EINVAL. */
#define MESH_TCP_BPF_SOCK_OPS_CB_FLAGS 1008

#define MESH_IPPROTO_MPTCP 262 /* include/uapi/linux/in.h, since 5.6 */

#endif
