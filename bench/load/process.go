package main

// What the kernel says about the relay's process, or processes.

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const ticksPerSecond = 100 // USER_HZ, the same on every Linux that Go runs on

// processes are the ids of a relay's processes; a flag.
type processes []int

func (p *processes) String() string { return strings.Trim(fmt.Sprint(*p), "[]") }

// Set reads ids with commas between them.
func (p *processes) Set(text string) error {
	*p = nil
	for _, each := range strings.Split(text, ",") {
		pid, err := strconv.Atoi(each)
		if err != nil {
			return err
		}
		*p = append(*p, pid)
	}
	return nil
}

// usage is what processes have used so far.
type usage struct {
	cpu     float64 // seconds, user and system
	wakeups uint64  // how often a thread had waited for something and went on
	memory  uint64  // bytes that are resident
}

// usageOf is what all of them have used together; it is all zero when there are none.
func usageOf(pids processes) (sum usage, err error) {
	for _, pid := range pids {
		u, err := usageOfOne(pid)
		if err != nil {
			return sum, err
		}
		sum.cpu += u.cpu
		sum.wakeups += u.wakeups
		sum.memory += u.memory
	}
	return sum, nil
}

// usageOfOne reads /proc.
func usageOfOne(pid int) (u usage, err error) {
	base := filepath.Join("/proc", strconv.Itoa(pid))
	if u.cpu, err = ticks(base); err != nil {
		return u, err
	}
	u.memory = statusField(base, "VmRSS:") * 1024
	threads, err := filepath.Glob(filepath.Join(base, "task", "*"))
	precise := 0.0
	for _, thread := range threads {
		precise += onCPU(thread)
		u.wakeups += statusField(thread, "voluntary_ctxt_switches:")
	}
	if precise > 0 {
		u.cpu = precise
	}
	return u, err
}

// ticks is utime and stime of /proc/PID/stat, which count hundredths of a second.
func ticks(base string) (seconds float64, err error) {
	stat, err := os.ReadFile(filepath.Join(base, "stat"))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may itself hold blanks and parentheses.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s/stat is %q", base, stat)
	}
	for _, field := range fields[11:13] {
		count, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, err
		}
		seconds += float64(count) / ticksPerSecond
	}
	return seconds, nil
}

// onCPU is the same for one thread in nanoseconds, where the kernel keeps account of it (CONFIG_SCHED_INFO); 0 where it does not.
func onCPU(thread string) (seconds float64) {
	text, err := os.ReadFile(filepath.Join(thread, "schedstat"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return 0
	}
	nanoseconds, _ := strconv.ParseUint(fields[0], 10, 64)
	return float64(nanoseconds) / 1e9
}

func statusField(directory, name string) uint64 {
	status, err := os.ReadFile(filepath.Join(directory, "status"))
	if err != nil {
		return 0 // a thread that has just ended
	}
	for _, line := range strings.Split(string(status), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name {
			value, _ := strconv.ParseUint(fields[1], 10, 64)
			return value
		}
	}
	return 0
}

// ownCPU is the processor time of this process in seconds.
func ownCPU() float64 {
	var used syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
}

// allowSockets makes room for so many sockets among the files that this process may have open.
func allowSockets(count int) error {
	needed := uint64(count) + 100 // what a process has open besides
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= needed {
		return err
	}
	wanted := limit
	wanted.Cur = needed
	if wanted.Max < needed {
		wanted.Max = needed
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &wanted); err != nil {
		return fmt.Errorf("%d sockets are needed, and a process may have %d files open (ulimit -Hn): %w", count, limit.Max, err)
	}
	return nil
}
