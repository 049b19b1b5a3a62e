// Events on their way from the thread that generates to the task that consumes, few at a time.
import Foundation

/// A bounded queue between one thread, which may block, and tasks, which may not.
///
/// The thread waits while `capacity` events are unread. So a slow consumer slows generation down, and memory stays bounded.
final class Channel: @unchecked Sendable {
    // Unchecked: everything below is reached through the condition's lock alone.
    private let condition = NSCondition()
    private let capacity: Int
    private var events: [Event] = []
    private var waiting: [CheckedContinuation<Event?, any Error>] = []
    private var phase = Phase.open
    private var ended = false
    private var failure: (any Error)?

    private enum Phase {
        case open
        /// What is generated is to end; what was is still delivered.
        case stopping
        /// The consumer is gone: nothing is delivered.
        case abandoned
    }

    init(capacity: Int) { self.capacity = capacity }

    private func locked<Result>(_ body: () -> Result) -> Result {
        condition.lock()
        defer { condition.unlock() }
        return body()
    }

    /// Whether the generation is to go on.
    var isOpen: Bool { locked { phase == .open && !ended } }

    /// Hands an event over; blocks while the consumer is behind. Whether the generation is to go on.
    func push(_ event: Event) -> Bool {
        locked {
            while phase == .open && events.count >= capacity { condition.wait() }
            if phase == .abandoned { return false }
            // Beyond the capacity by this one, where the generation was stopped while the consumer was behind.
            deliver(event)
            return phase == .open
        }
    }

    /// The generation's last word: the event of its end, or why it failed. Whoever waits for the end goes on.
    func finish(_ result: Result<Outcome, any Error>) {
        locked {
            ended = true
            switch result {
            case .success(let outcome): if phase != .abandoned { deliver(.finished(outcome)) }
            case .failure(let error): failure = error
            }
            // An event may be left for one of them, the end for all others.
            let all = waiting
            waiting = []
            for one in all { answer(one) }
        }
    }

    /// Lets the generation end at the next event.
    func stop() {
        locked {
            if phase == .open { phase = .stopping }
            condition.broadcast()
        }
    }

    /// The same, and forgets what was not consumed.
    func abandon() {
        locked {
            phase = .abandoned
            events = []
            condition.broadcast()
        }
    }

    /// The next event; nil at the end. A cancelled task abandons the generation and gets nil when that has ended: the chat is
    /// free then.
    func next(onCancel: @escaping @Sendable () -> Void) async throws -> Event? {
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                locked { answer(continuation) }
            }
        } onCancel: {
            onCancel()
        }
    }

    private func deliver(_ event: Event) {
        if waiting.isEmpty {
            events.append(event)
        } else {
            waiting.removeFirst().resume(returning: event)
        }
    }

    private func answer(_ continuation: CheckedContinuation<Event?, any Error>) {
        if !events.isEmpty {
            continuation.resume(returning: events.removeFirst())
            condition.broadcast()
        } else if !ended {
            waiting.append(continuation)
        } else if let failure, phase != .abandoned {
            self.failure = nil
            continuation.resume(throwing: failure)
        } else {
            continuation.resume(returning: nil)
        }
    }
}
