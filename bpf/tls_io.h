/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Plaintext of TLS calls: arguments are kept at entry, bytes are copied at return, when they are resident and their number is known. */
#ifndef LLMSEC_TLS_IO_H
#define LLMSEC_TLS_IO_H

struct moved {
	struct connection_key key;
	__u64 buffer;  /* where the next byte stands */
	__u64 segment; /* so many stand there, at most, before the call goes on elsewhere */
	__u64 ts_ns;
	__u32 direction;
	__u32 length;
	__u32 done; /* bytes of the call that earlier parts took */
	__u32 lost; /* any part found no room */
};

/* The compiler knows the bound from before the barrier, the verifier only believes what it sees after it. */
#define COPY_PART(room)                                                                                            \
	do {                                                                                                       \
		event = ring_reserve(ring, sizeof(*event) + (room));                                                     \
		if (!event)                                                                                        \
			return part_lost(connection, moved, size);                                                 \
		asm volatile("" : "+r"(size));                                                                     \
		if (size > (room))                                                                                 \
			size = (room);                                                                             \
		if (bpf_probe_read_user(event + 1, size, (void *)source)) {                                        \
			ring_discard(event);                                                                       \
			count(TAP_UNREADABLE_CALLS, 1);                                                            \
			return 0;                                                                                  \
		}                                                                                                  \
	} while (0)

static __always_inline int part_done(struct moved *moved, __u64 size)
{
	moved->done += PART_STEP(size);
	moved->buffer += PART_STEP(size);
	moved->segment -= PART_STEP(size);
	return moved->done < moved->length && moved->done < TAP_MAX_CALL_BYTES;
}

/* The ring is full: a hole in the offsets. The parts after it are still worth having. */
static __always_inline int part_lost(struct connection *connection, struct moved *moved, __u64 size)
{
	connection->lost++;
	count(TAP_LOST_RECORDS, 1);
	count(TAP_LOST_BYTES, size);
	if (!moved->lost)
		count(TAP_LOST_CALLS, 1);
	moved->lost = 1;
	return part_done(moved, size);
}

/*
 * One part of a call's bytes as a record, or its loss counted. Returns whether more is to do.
 * Global, so that the verifier looks at it once and not once for each turn of the loop below.
 */
GLOBAL_SUBPROGRAM int submit_part(struct moved *moved)
{
	struct connection *connection;
	struct tap_event *event;
	__u64 size, source;
	void *ring;

	if (!moved)
		return 0;
	KEY_OF_ARGUMENT(key, &moved->key);
	connection = connections_lookup(key);
	if (!connection)
		return 0;
	ring = ring_of(connection);
	if (!ring)
		return 0;
	size = moved->length - moved->done;
	source = moved->buffer;
	if (HAS_SEGMENTS && size > moved->segment)
		size = moved->segment;
	if (size > TAP_CLASS_64K)
		size = TAP_CLASS_64K;
	if (HAS_SEGMENTS && moved->done + size > TAP_MAX_CALL_BYTES)
		size = TAP_MAX_CALL_BYTES - moved->done;
	if (size <= TAP_CLASS_SMALL)
		COPY_PART(TAP_CLASS_SMALL);
	else if (size <= TAP_CLASS_1K)
		COPY_PART(TAP_CLASS_1K);
	else if (size <= TAP_CLASS_4K)
		COPY_PART(TAP_CLASS_4K);
	else if (size <= TAP_CLASS_16K)
		COPY_PART(TAP_CLASS_16K);
	else
		COPY_PART(TAP_CLASS_64K);
	event_head(event, TAP_DATA, key->pid, moved->ts_ns);
	event_connection(event, key, connection);
	event->direction = moved->direction;
	event->length = size;
	event->offset = connection->offsets[moved->direction & 1] + moved->done;
	event->call_length = moved->length;
	if (moved->length > TAP_MAX_CALL_BYTES && moved->done + size == TAP_MAX_CALL_BYTES)
		event->flags |= TAP_CUT;
	ring_submit(event, wake_at_mark(ring));
	return part_done(moved, size);
}

static __always_inline void call_done(struct connection *connection, const struct moved *moved)
{
	if (moved->length > TAP_MAX_CALL_BYTES)
		count(TAP_CUT_CALLS, 1);
	count(TAP_CALLS, 1);
	count(TAP_BYTES, moved->length);
	connection->offsets[moved->direction & 1] += moved->length;
}

static __always_inline void submit_bytes(struct connection *connection, struct moved *moved)
{
	int index;

	moved->segment = moved->length; /* TLS functions take one buffer */
	for (index = 0; index < TAP_MAX_PARTS; index++)
		if (!submit_part(moved))
			break;
	call_done(connection, moved);
}

static __always_inline int call_entered(struct pt_regs *regs, __u64 cookie)
{
	__u64 id = bpf_get_current_pid_tgid(), stack = regs->sp;
	struct thread *thread = threads_lookup(&id);
	struct call *call;

	if (!thread) { /* only threads of watched processes are known, so the others need not be asked for again */
		if (!is_watched(id >> 32))
			return 0;
		thread = new_thread(&id);
		if (!thread)
			return 0;
	}
	/* A call at or above this stack pointer never returned (longjmp, a probe missed): forget it. */
	if (thread->depth > 1 && thread->calls[1].stack <= stack)
		thread->depth = 1;
	if (thread->depth > 0 && thread->calls[0].stack <= stack)
		thread->depth = 0;
	if (thread->depth == 0)
		call = &thread->calls[0];
	else if (thread->depth == 1)
		call = &thread->calls[1];
	else
		return 0;
	call->connection = REG_FIRST(regs);
	call->buffer = REG_SECOND(regs);
	call->size_out = cookie & TAP_COOKIE_SIZE_OUT ? REG_FOURTH(regs) : 0;
	call->direction = cookie & TAP_COOKIE_WRITE ? TAP_WRITE : TAP_READ;
	call->stack = stack;
	if (cookie & TAP_COOKIE_WRITE) /* a read's time is that of its return */
		call->entered_ns = bpf_ktime_get_boot_ns();
	call->touched_socket = 0;
	thread->depth++;
	return 0;
}

static __always_inline int call_returned(struct pt_regs *regs)
{
	__u64 id = bpf_get_current_pid_tgid(), stack = STACK_AT_ENTRY(regs), written = 0;
	struct connection_key key = {.pid = id >> 32};
	struct connection *connection;
	struct thread *thread;
	struct moved moved = {};
	struct call call;
	int result = (int)REG_RESULT(regs);

	thread = threads_lookup(&id);
	if (!thread)
		return 0;
	if (thread->depth > 1 && thread->calls[1].stack == stack) {
		call = thread->calls[1];
		thread->depth = 1;
	} else if (thread->depth > 0 && thread->calls[0].stack == stack) {
		call = thread->calls[0];
		thread->depth = 0;
	} else {
		return 0;
	}
	if (result <= 0)
		return 0;
	moved.length = result;
	if (call.size_out) {
		if (bpf_probe_read_user(&written, sizeof(written), (void *)call.size_out) || !written)
			return 0;
		moved.length = written > 0x7fffffff ? 0x7fffffff : written;
	}
	moved.buffer = call.buffer;
	moved.direction = call.direction;
	moved.ts_ns = call.direction == TAP_WRITE ? call.entered_ns : bpf_ktime_get_boot_ns();
	key.connection = call.connection;
	connection = connection_of(&key);
	if (!connection)
		return 0;
	if (!call.touched_socket && !connection->socket.inode) {
		if (call.direction == TAP_WRITE)
			thread->unsent = call.connection;
		else if (thread->received_sock && inode_of((void *)thread->received_sock) == thread->received_inode)
			bind_socket(key.pid, call.connection, (void *)thread->received_sock, thread->received_inode, false);
	}
	moved.key = key;
	submit_bytes(connection, &moved);
	return 0;
}

/* A new TLS object: whatever used this address before is over. */
static __always_inline int connection_opened(struct pt_regs *regs)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct connection_key key = {.connection = REG_RESULT(regs), .pid = pid};
	struct connection *earlier, made = {};

	if (!REG_RESULT(regs) || !is_watched(pid))
		return 0;
	earlier = connections_lookup(&key);
	if (earlier && !end_connection(&key, earlier)) {
		made.ring = earlier->ring;
		made.owes = 1;
	}
	made.epoch_ns = bpf_ktime_get_boot_ns();
	made.fresh = 1;
	process_name(made.comm);
	connections_update(&key, &made);
	return 0;
}

static __always_inline int connection_freed(__u64 pointer)
{
	struct connection_key key = {.connection = pointer, .pid = bpf_get_current_pid_tgid() >> 32};

	forget_connection(&key);
	return 0;
}

/*
 * Go: arguments and the goroutine in registers (ABIInternal, Go 1.17 and later; aarch64: 1.18). A goroutine's stack moves and its
 * thread changes, so returns are plain probes on each RET and the key is the goroutine. The descriptor is read from
 * *tls.Conn -> net.Conn (interface) -> *netFD -> poll.FD.Sysfd, a layout unchanged since Go 1.9.
 */
#define TAP_GO_SYSFD_OFFSET 16

static __always_inline int go_entered(struct pt_regs *regs, __u64 cookie)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct connection_key key = {.connection = GO_GOROUTINE(regs), .pid = pid};
	struct call call = {};

	if (!is_watched(pid))
		return 0;
	call.connection = GO_FIRST(regs);
	call.buffer = GO_SECOND(regs);
	call.direction = cookie & TAP_COOKIE_WRITE ? TAP_WRITE : TAP_READ;
	call.entered_ns = bpf_ktime_get_boot_ns();
	go_calls_update(&key, &call);
	return 0;
}

static __always_inline void *go_socket(__u64 connection)
{
	__u64 net_conn = 0, net_fd = 0;
	__u32 fd = 0;

	if (bpf_probe_read_user(&net_conn, sizeof(net_conn), (void *)(connection + 8)) ||
	    bpf_probe_read_user(&net_fd, sizeof(net_fd), (void *)net_conn) ||
	    bpf_probe_read_user(&fd, sizeof(fd), (void *)(net_fd + TAP_GO_SYSFD_OFFSET)))
		return 0;
	return sock_of_descriptor(fd);
}

static __always_inline int go_returned(struct pt_regs *regs)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct connection_key goroutine = {.connection = GO_GOROUTINE(regs), .pid = pid}, key = {.pid = pid};
	struct call *known = go_calls_lookup(&goroutine), call;
	struct connection *connection;
	struct moved moved = {};
	long result = GO_RESULT(regs);
	__u64 inode;
	void *sock;

	if (!known)
		return 0;
	call = *known;
	go_calls_delete(&goroutine);
	if (result <= 0 || result > 0x7fffffff)
		return 0;
	key.connection = call.connection;
	connection = connection_of(&key);
	if (!connection)
		return 0;
	/* A pointer is used again after garbage collection; nothing tells but the socket. */
	sock = go_socket(call.connection);
	inode = sock ? inode_of(sock) : 0;
	if (inode)
		bind_socket(pid, call.connection, sock, inode, true);
	moved.buffer = call.buffer;
	moved.length = result;
	moved.direction = call.direction;
	moved.ts_ns = call.direction == TAP_WRITE ? call.entered_ns : bpf_ktime_get_boot_ns();
	moved.key = key;
	submit_bytes(connection, &moved);
	return 0;
}

#endif
