package main

import "unsafe"

// ptr is where a buffer begins, for the headers of control messages.
func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(&b[0]) }
