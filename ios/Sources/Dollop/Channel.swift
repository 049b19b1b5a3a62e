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
    private var waiting: [Waiting] = []
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

    private typealias Waiting = CheckedContinuation<Event?, any Error>
    private typealias Delivery = (to: Waiting, what: Result<Event?, any Error>)

    private func locked<Result>(_ body: () -> Result) -> Result {
        condition.lock()
        defer { condition.unlock() }
        return body()
    }

    /// Resumes what `body` returns when the lock is free again: a cancellation handler that waits for the lock may hold what
    /// resuming needs.
    private func deliveries(_ body: () -> [Delivery]) {
        for (waiting, result) in locked(body) { waiting.resume(with: result) }
    }

    /// Whether the generation is to go on.
    var isOpen: Bool { locked { phase == .open && !ended } }

    /// Hands an event over; blocks while the consumer is behind. Whether the generation is to go on.
    func push(_ event: Event) -> Bool {
        var goOn = false
        deliveries {
            while phase == .open && events.count >= capacity { condition.wait() }
            if phase == .abandoned { return [] }
            goOn = phase == .open
            // Beyond the capacity by this one, where the generation was stopped while the consumer was behind.
            events.append(event)
            return answers()
        }
        return goOn
    }

    /// The generation's last word: the event of its end, or why it failed. Whoever waits for the end goes on.
    func finish(_ result: Result<Outcome, any Error>) {
        deliveries {
            ended = true
            switch result {
            case .success(let outcome): if phase != .abandoned { events.append(.finished(outcome)) }
            case .failure(let error): if phase != .abandoned { failure = error }
            }
            return answers()
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
            failure = nil
            condition.broadcast()
        }
    }

    /// The next event; nil at the end. A cancelled task abandons the generation and gets nil when that has ended: the chat is
    /// free then.
    func next(onCancel: @escaping @Sendable () -> Void) async throws -> Event? {
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                deliveries {
                    waiting.append(continuation)
                    return answers()
                }
            }
        } onCancel: {
            onCancel()
        }
    }

    /// What those who wait get now: events in order, and at the end nothing, or once the failure.
    private func answers() -> [Delivery] {
        var answers: [Delivery] = []
        while !waiting.isEmpty && (ended || !events.isEmpty) {
            let next: Result<Event?, any Error>
            if !events.isEmpty {
                next = .success(events.removeFirst())
                condition.broadcast()
            } else if let failure {
                next = .failure(failure)
                self.failure = nil
            } else {
                next = .success(nil)
            }
            answers.append((waiting.removeFirst(), next))
        }
        return answers
    }
}
