// Completion sessions: continuing, forking, rewinding, saving.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class SessionTests: DollopTestCase {
    func testPromptsAreTextOrTokens() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let session = try await Session(engine)
        let text = try await collect(session.complete("The capital of France is", options: short)).text
        XCTAssertTrue(text.contains("Paris"), text)
        let ids = try engine.tokenize("The capital of France is", addSpecial: true)
        let tokens = try await session.tokens()
        XCTAssertEqual(Array(tokens.prefix(ids.count)), ids)
        let same = try await collect(session.generate(ids, options: short))
        XCTAssertEqual(same.text, text)
        await expect(.invalid, "empty") { try await collect(session.generate([], options: short)) }
    }

    func testForkedAndRestoredSessionsHaveTheSameLogits() async throws {
        let file = folder.appendingPathComponent("session")
        let engine = try await Engine(contentsOf: model, options: small)
        let session = try await Session(engine)
        let ids = try engine.tokenize("The capital of France is", addSpecial: true)
        let first = try await session.logits(after: ids)
        let info = try await session.info()
        XCTAssertTrue(info.context == 512 && info.tokens == ids.count && info.processedTokens == ids.count)
        XCTAssertEqual(first.count, try engine.info.vocab)
        let best = first.indices.max { first[$0] < first[$1] }!
        XCTAssertTrue(try engine.detokenize([TokenID(best)]).contains("Paris"))

        let fork = try await session.fork()
        try await session.save(to: file)
        let next = [TokenID(best)]
        let want = try await session.logits(after: next)
        let forked = try await fork.logits(after: next)
        XCTAssertEqual(forked, want)
        let restored = try await Session(engine, contentsOf: file)
        let loaded = try await restored.logits(after: next)
        XCTAssertEqual(loaded.map(\.bitPattern), want.map(\.bitPattern))

        try await session.rewind(to: ids.count)
        let rewound = try await session.tokens()
        XCTAssertEqual(rewound, ids)
        let again = try await session.logits(after: next)
        XCTAssertEqual(again, want)
        await expect(.invalid, "count -1") { try await session.rewind(to: -1) }
        await expect(.invalid) { try await session.logits(after: [.max]) }
        session.close()
        await expect(.closed) { try await session.tokens() }
    }
}
