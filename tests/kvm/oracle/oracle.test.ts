/**
 * Ordinary VMs on Cloister and on the /dev/kvm of this machine: the same sequences of raw calls, errno and bytes compared.
 * `node build/tests/kvm/oracle/oracle.test.js VMS SEED` plays others.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openKvm, REQUEST } from 'cloister'
import { needs } from '../../support/needs.ts'
import { compare, KNOWN, type Known } from './known.ts'
import { RealPlayer } from './real.ts'
import { EmulatedPlayer, line } from './script.ts'
import { Sequences } from './sequences.ts'

const test = suite('kvm oracle')
const LENGTH = 40

needs(test, 'kvmOracle', 'the same answers as /dev/kvm', async () => {
  const [vms, seed] = [Number(process.argv[2] ?? 120), Number(process.argv[3] ?? 20201120)]
  process.stdout.write(`  ${vms} VMs, seed ${seed}\n`)
  const sequences = new Sequences(seed, REQUEST)
  using real = new RealPlayer()
  const kvm = await openKvm({ memory: 256 << 20 })
  const emulated = new EmulatedPlayer(kvm)
  const seen = new Map<Known, number>()
  const wrong: string[] = []
  let compared = 0
  for (let vm = 0; vm < vms; vm++) {
    const commands = sequences.next(LENGTH)
    const theirs = real.play(commands)
    for (const [i, command] of commands.entries()) {
      const ours = emulated.play(command)
      const difference = compare(command, ours, theirs[i] as (typeof theirs)[number], commands.slice(0, i))
      compared++
      if (difference === null) continue
      if (difference.known === null) {
        wrong.push(
          `VM ${vm}, command ${i}: ${command.do === 'call' ? command.name : ''} ${line(command)}: ${difference.text} (${emulated.reason})`,
        )
        break
      }
      seen.set(difference.known, (seen.get(difference.known) ?? 0) + 1)
      if (difference.known.parts) break
    }
  }
  process.stdout.write(
    `  ${compared} answers compared, ${[...seen.values()].reduce((a, b) => a + b, 0)} known differences of ${seen.size} kinds (of ${KNOWN.length})\n`,
  )
  assert.equal(wrong.slice(0, Number(process.env['CLOISTER_ORACLE_SHOW'] ?? 5)), [])
  assert.ok(compared > vms * 15, `${compared} answers compared`)
})

test.run()
