/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Selection of processes, totals, and the filling of records. */
#ifndef LLMSEC_RECORDS_H
#define LLMSEC_RECORDS_H

/* Payload room of a record by size class: user memory is read straight into the ring, whose records have constant sizes. */
#define TAP_CLASS_SMALL 128
#define TAP_CLASS_1K (1024 - 128)
#define TAP_CLASS_4K 4096
#define TAP_CLASS_16K 16384
#define TAP_CLASS_64K TAP_PART_BYTES

/* The tap's own processes that speak or start others: the one that attaches, the one that asks for pods, the one that serves metrics. */
static __always_inline bool is_own(__u32 pid)
{
	return pid == OWN_PID || pid == HELPER_PID || pid == LISTENER_PID;
}

static __always_inline bool is_watched(__u32 pid)
{
	if (is_own(pid))
		return false;
	return !ONLY_TARGETS || targets_lookup(&pid);
}

static __always_inline void count(__u32 which, __u64 amount)
{
	__u64 *total = totals_lookup(&which);

	if (total)
		*total += amount;
}

/* The name of the current thread's process, which is that of its first thread. */
static __always_inline void process_name(char *out)
{
	void *task = (void *)bpf_get_current_task(), *leader = 0;

	KERNEL_READ(leader, task, task_struct, group_leader);
	KERNEL_READ_COMM(out, leader);
}

/* In turn: connections are few and live long on some hosts, and chance would put most of them into one. */
static __always_inline __u32 next_ring(void)
{
	__u32 zero = 0, *turn;

	if (RINGS < 2)
		return 0;
	turn = turns_lookup(&zero);
	return turn ? ((*turn)++ + bpf_get_smp_processor_id()) % RINGS : 0;
}

/* The ring of a connection is chosen with its first record: TLS objects of which nothing comes, or that are cleared first, take no turn. */
static __always_inline void *ring_of(struct connection *connection)
{
	__u32 number;

	if (!connection->ring)
		connection->ring = next_ring() + 1;
	number = connection->ring - 1;
	return rings_lookup(&number);
}

static __always_inline void event_head(struct tap_event *event, __u8 type, __u32 pid, __u64 ts_ns)
{
	__builtin_memset(event, 0, sizeof(*event));
	event->version = TAP_EVENT_VERSION;
	event->type = type;
	event->ts_ns = ts_ns;
	event->pid = pid;
	event->tid = (__u32)bpf_get_current_pid_tgid();
}

/*
 * Waking the reader costs the observed process 4 us, so data does not wake it: it comes by itself some dozen times a second. Only
 * where the ring fills faster than that it is called, as the mark of a quarter is passed; a reader far behind is awake already.
 */
static __always_inline __u64 wake_at_mark(void *ring)
{
	__u64 size = ring_query(ring, BPF_RB_RING_SIZE), filled = ring_query(ring, BPF_RB_AVAIL_DATA);

	return filled >= size / 4 && filled < size / 4 + size / 16 ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

static __always_inline void event_connection(struct tap_event *event, const struct connection_key *key,
					     const struct connection *connection)
{
	event->connection = key->connection;
	event->epoch_ns = connection->epoch_ns;
	event->lost = connection->lost;
	event->inode = connection->socket.inode;
	event->family = connection->socket.family;
	event->local_port = connection->socket.local_port;
	event->remote_port = connection->socket.remote_port;
	__builtin_memcpy(event->comm, connection->comm, 16);
	__builtin_memcpy(event->local, connection->socket.local, 16);
	__builtin_memcpy(event->remote, connection->socket.remote, 16);
	if (connection->fresh)
		event->flags |= TAP_FRESH;
}

#endif
