/** A whole machine in twelve lines: raw code, its console, its end. `node build/examples/01-hello.js` */
import { Machine } from 'cloister/vmm'

// mov dx, 0x3f8; mov al, 'A'; out dx, al; mov al, 10; out dx, al; cli; hlt
const bytes = Uint8Array.of(0x66, 0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, 0xb0, 0x0a, 0xee, 0xfa, 0xf4)

using machine = await Machine.create({
  image: { bytes, load: 0x100000, entry: 0x100000, mode: 'long64' },
  memory: 16 * 1024 * 1024,
  onSerial: (text) => void process.stdout.write(text),
})
const { reason, report } = await machine.run()
process.stdout.write(`${reason} after ${report.instructions} instructions\n`)
