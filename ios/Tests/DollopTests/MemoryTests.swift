// Giving memory back and taking it again, even during a generation.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class MemoryTests: DollopTestCase {
    func testResizesWithinAnAnswerChangeNoWord() async throws {
        let options = GenerationOptions(maxTokens: 120, sampling: .greedy, ignoresEndOfTurn: true)
        let resident = try await Engine(contentsOf: model, options: small)
        let want = try await resident.chat().reply(to: question, options: options).text

        let most = try await streamed(spare: 24 << 20).memory!
        let least = try await streamed(spare: 0).memory!
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
        let stream = try XCTUnwrap(engine.statistics.stream)
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
            try await Engine(contentsOf: model, options: EngineOptions(memory: 1 << 20))
        }
        await expect(.budget) {
            try await Engine.plan(contentsOf: model, options: EngineOptions(memory: 1 << 20))
        }
    }

    func testTheKeeperFollowsTheSystem() async throws {
        let engine = try await Engine(contentsOf: model, options: try await streamed(spare: 24 << 20))
        let full = try engine.plan.expertBytes
        let trims = Protected<[(TrimLevel, UInt64)]>([])
        var keeper: MemoryKeeper? = MemoryKeeper(engine) { level, result in
            trims { $0.append((level, (try? result.get()) ?? 0)) }
        }
        func noted(_ event: MemoryEvent) async throws -> (TrimLevel, UInt64) {
            let before = trims { $0.count }
            keeper!.note(event)
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
        keeper = nil
        engine.close()
        XCTAssertEqual(trims { $0.count }, 4)
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
