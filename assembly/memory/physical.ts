/** Guest-physical memory as the host kernel and devices see it (shared view). STUB: memory room. */
/** Copies from guest-physical memory through the host's view; false if any page has no slot. n may cross pages. */
export function gpaRead(vm: usize, gpa: u64, to: usize, n: u32): bool { return false }
export function gpaWrite(vm: usize, gpa: u64, from: usize, n: u32): bool { return false }
