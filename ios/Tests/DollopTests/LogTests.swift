// Gate 212: log messages reach the listener of their level, and the listener can be replaced and removed.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class LogTests: DollopTestCase {
    private struct Entry: Sendable {
        let level: LogLevel
        let target: String
        let message: String
    }

    private let entries = Protected<[Entry]>([])

    /// Returns the messages since the last call.
    private func taken() -> [Entry] {
        entries { (all: inout [Entry]) -> [Entry] in
            defer { all = [] }
            return all
        }
    }

    private func listen(_ level: LogLevel) throws {
        try DollopLog.listen(level) { [entries] level, target, message in
            entries { $0.append(Entry(level: level, target: target, message: message)) }
        }
    }

    override func tearDown() async throws {
        try DollopLog.stop()
        try await super.tearDown()
    }

    func testAListenerReceivesMessagesUpToItsLevelUntilItIsRemoved() async throws {
        try listen(.info)
        _ = try await Engine(contentsOf: model, options: small)
        let opened = taken()
        XCTAssertTrue(
            opened.contains { $0.level == .info && $0.target.hasPrefix("dollop::") && $0.message.contains(model.path) }, "\(opened)")
        XCTAssertTrue(opened.allSatisfy { $0.level <= .info }, "\(opened)")
        try listen(.trace)
        let engine = try await Engine(contentsOf: model, options: try await streamed())
        _ = try await engine.chat().reply(to: question, options: short)
        let all = taken()
        XCTAssertTrue(all.contains { $0.level == .debug && $0.message.hasPrefix("memory: ") })
        XCTAssertTrue(all.filter { $0.level == .trace }.count > 100, "planes that are read and evicted")
        try DollopLog.stop()
        _ = try await Engine(contentsOf: model, options: small)
        XCTAssertEqual(taken().count, 0, "after it was removed")
    }

    func testAListenerCannotReplaceItselfAndIsReleased() async throws {
        final class Token: Sendable {}
        var token: Token? = Token()
        weak var released = token
        let statuses = Protected<[DollopError.Status?]>([])
        try DollopLog.listen(.debug) { [token] _, _, _ in
            withExtendedLifetime(token) {}
            do {
                try DollopLog.stop()
                statuses { $0.append(nil) }
            } catch {
                statuses { $0.append((error as? DollopError)?.status) }
            }
        }
        token = nil
        _ = try await Engine(contentsOf: model, options: small)
        let seen = statuses { $0 }
        XCTAssertTrue(!seen.isEmpty && seen.allSatisfy { $0 == .busy }, "\(seen)")
        XCTAssertNotNil(released)
        try DollopLog.stop()
        XCTAssertNil(released)
    }

    /// Listeners are replaced while other threads log. A listener that was released too early would crash.
    func testReplacingRacesWithLogging() async throws {
        let engine = try await Engine(contentsOf: model, options: try await streamed())
        let received = Protected(0)
        let replacing = Task.detached {
            var replaced = 0
            while !Task.isCancelled {
                try DollopLog.listen(.trace) { _, _, _ in received { $0 += 1 } }
                if replaced % 3 == 2 { try DollopLog.stop() }
                replaced += 1
            }
            return replaced
        }
        for _ in 0..<3 { _ = try await engine.chat().reply(to: question, options: short) }
        replacing.cancel()
        let replaced = try await replacing.value
        XCTAssertTrue(replaced > 100 && received { $0 } > 100, "\(replaced) listeners")
    }
}
