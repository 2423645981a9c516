/** The short form of the ioctl fuzzer; `npm run fuzz:ioctl` is the long one (10 million calls). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { fuzz } from './fuzzer.ts'

test('140,000 raw ioctls from valid states', async () => {
  const report = await fuzz(140_000, 20201120)
  assert.equal(report.wrong.slice(0, 10), [])
  assert.ok(report.deep > report.calls * 0.3, `${report.deep} of ${report.calls} past the first check`)
  assert.ok(report.judged > report.calls * 0.4, `${report.judged} of ${report.calls} foretold by the model`)
  assert.ok(report.cells > 1150, `${report.cells} cells`)
  assert.is(report.leaked, 0)
  assert.is(report.memory.after, report.memory.before, 'core memory grew')
  assert.is(report.descriptors.after, report.descriptors.before, 'descriptors leaked')
})

test.run()
