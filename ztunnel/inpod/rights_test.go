package inpod

import "syscall"

// rights is the control message that passes these descriptors.
func rights(fds []int) []byte {
	if len(fds) == 0 {
		return nil
	}
	return syscall.UnixRights(fds...)
}
