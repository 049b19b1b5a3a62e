// The queue of events between the thread that generates and the task that consumes.
import Foundation

/// A bounded queue from one thread, which may block, to tasks, which may not.
///
/// The thread waits while `capacity` events are unread. So a slow consumer slows generation down, and memory stays bounded.
final class Channel: @unchecked Sendable {
    // Unchecked: the condition's lock guards all properties below.
    private let condition = NSCondition()
    private let capacity: Int
    private var events: [Event] = []
    private var waiting: [Waiting] = []
    private var phase = Phase.open
    private var ended = false
    private var failure: (any Error)?

    private enum Phase {
        /// The generation may continue.
        case open
        /// The generation must end. Queued events are still delivered.
        case stopping
        /// The consumer is gone. The generation must end, and nothing more is delivered.
        case abandoned
    }

    /// Creates an open queue in which at most `capacity` events wait.
    init(capacity: Int) { self.capacity = capacity }

    private typealias Waiting = CheckedContinuation<Event?, any Error>
    private typealias Delivery = (to: Waiting, what: Result<Event?, any Error>)

    /// Calls `body` with the lock held.
    private func locked<Result>(_ body: () -> Result) -> Result {
        condition.lock()
        defer { condition.unlock() }
        return body()
    }

    /// Calls `body` with the lock held, and makes the deliveries that it returns after the unlock. A cancellation handler that
    /// waits for the lock may hold what resuming a task needs.
    private func deliveries(_ body: () -> [Delivery]) {
        for (waiting, result) in locked(body) { waiting.resume(with: result) }
    }

    /// Whether the generation may continue.
    var isOpen: Bool { locked { phase == .open && !ended } }

    /// Appends an event. Blocks while the queue is full.
    /// - Returns: whether the generation may continue.
    func push(_ event: Event) -> Bool {
        var goOn = false
        deliveries {
            while phase == .open && events.count >= capacity { condition.wait() }
            if phase == .abandoned { return [] }
            goOn = phase == .open
            // If the generation was stopped while the queue was full, this exceeds the capacity by one event.
            events.append(event)
            return answers()
        }
        return goOn
    }

    /// Ends the queue with the generation's outcome, as the last event, or with its error. Resumes waiting tasks.
    func finish(_ result: Result<Outcome, any Error>) {
        deliveries {
            ended = true
            switch result {
            case .success(let outcome): if phase != .abandoned { events.append(.done(outcome)) }
            case .failure(let error): if phase != .abandoned { failure = error }
            }
            return answers()
        }
    }

    /// Makes the generation end at its next event. Queued events are still delivered.
    func stop() {
        locked {
            if phase == .open { phase = .stopping }
            condition.broadcast()
        }
    }

    /// Makes the generation end at its next event, and drops queued events.
    func abandon() {
        locked {
            phase = .abandoned
            events = []
            failure = nil
            condition.broadcast()
        }
    }

    /// Returns the next event, or nil at the end.
    ///
    /// If the task is cancelled, this calls `onCancel`, and returns nil when the generation has ended. The chat is then free.
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

    /// Takes the deliveries for waiting tasks: events in order, then the error once, then nil. Needs the lock.
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
