// The queue between the thread that generates and the consumer.
import Foundation
import XCTest

@testable import Dollop

final class ChannelTests: XCTestCase {
    private func token(_ n: Int) -> Event { .token(TokenID(n), text: "") }

    func testEventsKeepTheirOrderUnderBackPressure() async throws {
        let channel = Channel(capacity: 4)
        let (ahead, read) = (Protected(0), Protected(0))
        startThread("test") {
            for n in 0..<5000 {
                XCTAssertTrue(channel.push(.token(TokenID(n), text: "")))
                let taken = read { $0 }
                ahead { $0 = max($0, n + 1 - taken) }
            }
            channel.finish(.success(.nothing))
        }
        for n in 0..<5000 {
            let event = try await channel.next {}
            XCTAssertEqual(event, token(n))
            read { $0 += 1 }
        }
        let (last, end) = (try await channel.next {}, try await channel.next {})
        XCTAssertEqual(last, .done(.nothing))
        XCTAssertNil(end)
        // The consumer may have taken one more, but not counted it yet.
        XCTAssertTrue(ahead { $0 } <= 5, "\(ahead { $0 }) events ahead")
    }

    func testAStopUnblocksTheWaitingThread() async throws {
        let channel = Channel(capacity: 1)
        let answers = Protected<[Bool]>([])
        startThread("test") {
            for n in 0..<2 {
                let answer = channel.push(.token(TokenID(n), text: ""))
                answers { $0.append(answer) }
            }
            channel.finish(.success(.nothing))
        }
        try await eventually("the first") { answers { $0.count == 1 } }
        try await Task.sleep(nanoseconds: 50_000_000)
        XCTAssertEqual(answers { $0 }, [true], "the second waits")
        channel.stop()
        try await eventually("the second") { answers { $0.count == 2 } }
        XCTAssertEqual(answers { $0 }, [true, false])
        // No event is lost.
        var events: [Event] = []
        while let event = try await channel.next(onCancel: {}) { events.append(event) }
        XCTAssertEqual(events, [token(0), token(1), .done(.nothing)])
    }

    func testAnAbandonedChannelDropsItsEvents() async throws {
        let channel = Channel(capacity: 8)
        XCTAssertTrue(channel.push(token(0)))
        channel.abandon()
        XCTAssertFalse(channel.push(token(1)))
        XCTAssertFalse(channel.isOpen)
        channel.finish(.failure(DollopError(status: .io, message: "")))
        let end = try await channel.next {}
        XCTAssertNil(end)
    }

    func testAFailureIsThrownOnce() async throws {
        let channel = Channel(capacity: 8)
        let waiting = Task { try await channel.next {} }
        try await Task.sleep(nanoseconds: 20_000_000)
        channel.finish(.failure(DollopError(status: .io, message: "gone")))
        await expect(.io, "gone") { try await waiting.value }
        let end = try await channel.next {}
        XCTAssertNil(end)
    }
}
