/**
 * The guest's serial console on stdin and stdout. Output is written at once. On a terminal stdin is raw, so Ctrl-C
 * reaches the guest, and Ctrl-A X leaves (Ctrl-A Ctrl-A sends one Ctrl-A).
 */
const CTRL_A = 0x01

export interface Console {
  output(bytes: Uint8Array): void
  close(): void
}

export function openConsole(input: (bytes: Uint8Array) => void, end: () => void, leave: () => void): Console {
  const { stdin, stdout } = process
  let escape = false
  const onData = (chunk: Buffer) => {
    const pass: number[] = []
    for (const byte of chunk) {
      if (escape) {
        escape = false
        if (byte === 0x78 || byte === 0x58) return leave()
        if (byte === CTRL_A) pass.push(byte)
      } else if (byte === CTRL_A) escape = true
      else pass.push(byte)
    }
    if (pass.length > 0) input(Uint8Array.from(pass))
  }
  const raw = stdin.isTTY === true
  if (raw) stdin.setRawMode(true)
  stdin.on('data', onData)
  // A closed or missing stdin is a console nobody types on.
  stdin.on('error', end)
  stdin.on('end', end)
  stdin.resume()
  return {
    output: (bytes) => void stdout.write(bytes),
    close: () => {
      stdin.off('data', onData)
      if (raw) stdin.setRawMode(false)
      stdin.pause()
    },
  }
}
