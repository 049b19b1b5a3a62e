// Giving memory back and taking it again, even during a generation. Gate 214: a failed trim is tried again.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class MemoryTests: DollopTestCase {
    func testResizesDuringAnAnswerDoNotChangeItsText() async throws {
        let options = GenerateOptions(maxTokens: 120, sampling: .greedy, ignoreEos: true)
        let resident = try await Engine(contentsOf: model, options: small)
        let want = try await resident.chat().reply(to: question, options: options).text

        let most = try await streamed(spare: 24 << 20).memoryBytes!
        let least = try await streamed(spare: 0).memoryBytes!
        let engine = try await Engine(contentsOf: model, options: try await streamed(spare: 24 << 20))
        let chat = try await engine.chat()
        let resizer = Task.detached {
            var (given, state, resizes) = (UInt64(0), UInt64(3), 0)
            while !Task.isCancelled {
                state = state &* 0x5851_f42d_4c95_7f2d &+ 0x1405_7b7e_f767_814f
                let random = state >> 33
                if random % 3 == 0 {
                    given += try await engine.trim(TrimLevel.allCases[Int(random / 3 % 4)])
                } else {
                    let bytes = least + (most - least) * (random / 3 % 1000) / 999
                    given += try await engine.setMemory(bytes)
                    let plan = try engine.plan
                    XCTAssertTrue(plan.budget == bytes && plan.totalBytes <= bytes)
                }
                resizes += 1
            }
            return (given, resizes)
        }
        for _ in 0..<2 {
            let text = try await chat.reply(to: question, options: options).text
            XCTAssertEqual(text, want)
            try await chat.reset()
        }
        resizer.cancel()
        let (given, resizes) = try await resizer.value
        let stream = try XCTUnwrap(engine.stats.stream)
        print("\(resizes) resizes, \(given >> 20) MB given back")
        XCTAssertTrue(resizes > 10 && given > 8 << 20)
        XCTAssertTrue(stream.resizes > 0 && stream.bytesGivenBack == given)
    }

    func testABudgetThatCannotWorkChangesNothing() async throws {
        let engine = try await Engine(contentsOf: model, options: try await streamed())
        let before = try engine.plan
        await expect(.budget) { try await engine.setMemory(1 << 20) }
        XCTAssertEqual(try engine.plan, before)
        await expect(.budget) {
            try await Engine(contentsOf: model, options: EngineOptions(memoryBytes: 1 << 20))
        }
        await expect(.budget) {
            try await Engine.plan(contentsOf: model, options: EngineOptions(memoryBytes: 1 << 20))
        }
    }

    func testTheFollowerTrimsOnEvents() async throws {
        let engine = try await Engine(contentsOf: model, options: try await streamed(spare: 24 << 20))
        let full = try engine.plan.expertBytes
        let trims = Protected<[(TrimLevel, UInt64)]>([])
        var follower: MemoryFollower? = MemoryFollower(engine) { level, result in
            trims { $0.append((level, (try? result.get()) ?? 0)) }
        }
        func noted(_ event: MemoryEvent) async throws -> (TrimLevel, UInt64) {
            let before = trims { $0.count }
            follower!.note(event)
            try await eventually("\(event)") { trims { $0.count > before } }
            return trims { $0.last! }
        }
        let warning = try await noted(.pressureWarning)
        XCTAssertEqual(warning.0, .moderate)
        XCTAssertTrue(warning.1 > 0)
        XCTAssertTrue(try engine.plan.expertBytes < full)
        let again = try await noted(.pressureWarning)
        XCTAssertEqual(again.1, 0, "the same level again gives nothing")
        let background = try await noted(.enteredBackground)
        XCTAssertTrue(background.0 == .complete && background.1 > 0)
        let foreground = try await noted(.entersForeground)
        XCTAssertEqual(foreground.0, .normal)
        XCTAssertEqual(try engine.plan.expertBytes, full)
        follower = nil
        engine.close()
        XCTAssertEqual(trims { $0.count }, 4)
    }

    func testAFailedTrimIsTriedAgainUntilItSucceedsOrTheLevelChanges() async throws {
        let engine = try await Engine(contentsOf: model, options: try await streamed(spare: 24 << 20))
        let full = try engine.plan.expertBytes
        let failures = Protected(2)
        let trims = Protected<[(TrimLevel, UInt64?)]>([])
        let failing: @Sendable (TrimLevel) async throws -> UInt64? = { level in
            let left = failures { (left: inout Int) -> Int in
                left -= 1
                return left
            }
            if left >= 0 { throw DollopError(status: .io, message: "on purpose") }
            return try await engine.trim(level)
        }
        var follower: MemoryFollower? = MemoryFollower(trimming: failing) { level, result in
            trims { $0.append((level, try? result.get())) }
        }
        follower!.note(.pressureWarning)
        try await eventually("three trims") { trims { $0.count == 3 } }
        let three = trims { $0 }
        XCTAssertEqual(three.map(\.0), [.moderate, .moderate, .moderate])
        XCTAssertTrue(three[0].1 == nil && three[1].1 == nil && three[2].1! > 0, "\(three)")
        XCTAssertTrue(try engine.plan.expertBytes < full)
        // Another level replaces one that failed.
        failures { $0 = 1 }
        follower!.note(.enteredBackground)
        try await eventually("a failure") { trims { $0.count == 4 } }
        follower!.note(.entersForeground)
        try await eventually("another level") { trims { $0.count == 5 } }
        XCTAssertEqual(try engine.plan.expertBytes, full)
        try await Task.sleep(nanoseconds: 1_500_000_000)
        let all = trims { $0 }
        XCTAssertEqual(all.map(\.0), [.moderate, .moderate, .moderate, .complete, .normal])
        XCTAssertTrue(all[3].1 == nil && all[4].1 != nil)
        follower = nil
    }

    func testThePolicyTakesTheHigherLevel() {
        var policy = MemoryPolicy()
        let story: [(MemoryEvent, TrimLevel)] = [
            (.pressureWarning, .moderate), (.pressureCritical, .critical), (.enteredBackground, .complete),
            // In the background, the end of memory pressure does not enlarge the cache.
            (.pressureNormal, .complete), (.pressureWarning, .complete), (.entersForeground, .normal),
            (.pressureCritical, .critical), (.pressureNormal, .normal),
        ]
        for (event, level) in story { XCTAssertEqual(policy.note(event), level, "\(event)") }
        XCTAssertEqual(policy.level, .normal)
    }
}
